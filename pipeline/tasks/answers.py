"""What models answered, request by request, in one SQLite file of the cache folder: no answer is computed twice.

An answer belongs to what made it: the model's bytes, how it is run, the library that runs it, and the request's tokens.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from native.completion import Prompt
from native.likelihood import Continuation
from native.model import ContextOptions
from pipeline.calibration.cache import cache_folder
from pipeline.compare.cell import sha256_of
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.tasks.session import Answer, Session

FILE = "answers.sqlite"
FORMAT = 1  # in a key, so that another meaning of an answer is another answer
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
    """As a Session; what it was asked before, it reads, and every answer is kept as soon as it is there."""

    def __init__(self, model: GGUFModel, options: ContextOptions, answers: sqlite3.Connection) -> None:
        super().__init__(Path(model.path), options)
        self._db = answers
        self._key = sha256_of([FORMAT, model.sha256(), version("llama-cpp-python"), _that_matters(options)])

    def answers(self, requests: Sequence[Continuation]) -> Iterator[dict[int, Answer]]:
        keys = [_digest(request.context, request.target) for request in requests]
        known = {
            number: Answer(row[0], bool(row[1]))
            for number, key in enumerate(keys)
            if (row := self._find("SELECT total, greedy FROM likelihoods", key))
        }
        if known:
            yield known
        missing = [number for number in range(len(requests)) if number not in known]
        for part in super().answers([requests[number] for number in missing]):
            found = {missing[i]: answer for i, answer in part.items()}
            with self._db:
                self._db.executemany(
                    "INSERT OR REPLACE INTO likelihoods VALUES (?, ?, ?, ?)",
                    [(self._key, keys[number], answer.total, answer.greedy) for number, answer in found.items()],
                )
            yield found

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, str]]:
        keys = [_digest(p.tokens, p.limit, p.until, p.temperature, p.top_k, p.top_p, p.seed) for p in prompts]
        known = {
            number: str(row[0]) for number, key in enumerate(keys) if (row := self._find("SELECT text FROM texts", key))
        }
        if known:
            yield known
        missing = [number for number in range(len(prompts)) if number not in known]
        for part in super().complete([prompts[number] for number in missing]):
            found = {missing[i]: text for i, text in part.items()}
            with self._db:
                self._db.executemany(
                    "INSERT OR REPLACE INTO texts VALUES (?, ?, ?)",
                    [(self._key, keys[number], text) for number, text in found.items()],
                )
            yield found

    def _find(self, what: str, key: bytes) -> tuple[float, ...] | None:
        row: tuple[float, ...] | None = self._db.execute(
            f"{what} WHERE model = ? AND request = ?", (self._key, key)
        ).fetchone()
        return row


def _that_matters(options: ContextOptions) -> list[object]:
    """What an answer depends on: not on threads, nor on how much is decoded at once, beyond rounding."""
    return [options.type_k.lower(), options.type_v.lower(), options.flash_attention, options.gpu_layers]


def _digest(*parts: object) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.asarray(part, np.int32).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        digest.update(b"|")
    return digest.digest()
