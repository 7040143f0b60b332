"""What models answered, request by request, in one SQLite file of the cache folder: no answer is computed twice.

An answer belongs to what made it: the model's bytes, how it is run, the library that runs it, and the request's tokens.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from native.completion import Prompt
from native.model import ContextOptions
from pipeline.calibration.cache import cache_folder
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.json_text import sha256_of
from pipeline.revision import revisions
from pipeline.tasks.session import Answer, Question, Reply, Session, question_key

FILE = "answers.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS likelihoods (model TEXT NOT NULL, request BLOB NOT NULL, total REAL NOT NULL,
    greedy INTEGER NOT NULL, PRIMARY KEY (model, request)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS texts (model TEXT NOT NULL, request BLOB NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (model, request)) WITHOUT ROWID;
"""


@contextmanager
def open_answers() -> Iterator[sqlite3.Connection]:
    """The answers of this user. Raises SurgeryError when the file is damaged or cannot be written."""
    path = cache_folder() / FILE
    try:
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
            yield connection
    except sqlite3.OperationalError as error:
        raise SurgeryError(f"{path}: cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        raise SurgeryError(f"{path}: damaged ({error}); delete it, and what it held is computed again") from None


class RememberingSession(Session):
    """As a Session; what it was asked before, it reads, and every reply is kept as soon as it is there."""

    def __init__(self, model: GGUFModel, options: ContextOptions, answers: sqlite3.Connection) -> None:
        super().__init__(Path(model.path), options)
        self._db = answers
        self._key = sha256_of([revisions("asking"), model.sha256(), _that_matters(options)])

    def replies(self, questions: Sequence[Question]) -> Iterator[dict[int, Reply]]:
        keys = [question_key(question) for question in questions]
        known = {i: reply for i, q in enumerate(questions) if (reply := self._find(q, keys[i])) is not None}
        if known:
            yield known
        missing = [number for number in range(len(questions)) if number not in known]
        for part in super().replies([questions[number] for number in missing]):
            found = {missing[i]: reply for i, reply in part.items()}
            with self._db:
                for number, reply in found.items():
                    kept = (reply.total, reply.greedy) if isinstance(reply, Answer) else (reply,)
                    self._db.execute(
                        f"INSERT OR REPLACE INTO {_table(questions[number])} VALUES (?, ?{', ?' * len(kept)})",
                        (self._key, keys[number], *kept),
                    )
            yield found

    def _find(self, question: Question, key: bytes) -> Reply | None:
        row = self._db.execute(
            f"SELECT * FROM {_table(question)} WHERE model = ? AND request = ?", (self._key, key)
        ).fetchone()
        if row is None:
            return None
        return str(row[2]) if isinstance(question, Prompt) else Answer(row[2], bool(row[3]))


def _table(question: Question) -> str:
    return "texts" if isinstance(question, Prompt) else "likelihoods"


def _that_matters(options: ContextOptions) -> list[object]:
    """What an answer depends on: not on threads, nor on how much is decoded at once, beyond rounding."""
    return [options.type_k.lower(), options.type_v.lower(), options.flash_attention, options.gpu_layers]
