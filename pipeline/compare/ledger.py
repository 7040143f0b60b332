"""The ledger: one SQLite file that holds whatever a study has measured, chunk by chunk."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from native.scoring import TokenScores
from pipeline.compare.cell import Cell
from pipeline.errors import SurgeryError, UsageError
from pipeline.tasks.session import Answer, Reply

LEDGER = "ledger.sqlite"
FORMAT_VERSION = 3  # 1 knew one text, and had its numbers under the program's version alone
WITHOUT_REPLIES = 2  # as 3, before cells were asked tasks
APPLICATION_ID = 0x53524759  # SRGY: tells a ledger from another program's database
SCHEMA = """
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (number INTEGER PRIMARY KEY, parameters TEXT UNIQUE NOT NULL, key TEXT NOT NULL);
CREATE TABLE operations (plan TEXT PRIMARY KEY, report TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (key TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT, facts TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks (run TEXT NOT NULL, number INTEGER NOT NULL, seconds REAL NOT NULL,
    nll BLOB NOT NULL, kld BLOB NOT NULL, same_top BLOB NOT NULL, PRIMARY KEY (run, number)) WITHOUT ROWID;
"""
REPLIES = """
CREATE TABLE replies (run TEXT NOT NULL, question BLOB NOT NULL, total REAL, greedy INTEGER, text TEXT,
    PRIMARY KEY (run, question)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Run:
    """A measurement of a cell, or of a cell on one text: `reason` says why its `status` is stopped or failed.

    status: pending, running, done, stopped or failed
    """

    key: str
    status: str = "pending"
    reason: str | None = None
    facts: dict[str, Any] | None = None


class Ledger:
    """What was measured. Every `add_` is a transaction of its own: a killed process loses what it had not added."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def facts(self) -> dict[str, Any]:
        """What is known of the study as a whole."""
        return {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM study")}

    def set_facts(self, facts: dict[str, Any]) -> None:
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO study VALUES (?, ?)", rows)

    def add_cells(self, cells: dict[Cell, str]) -> None:
        """Remember cells and their keys; a cell that is known keeps its number."""
        rows = [(json.dumps(cell.parameters(), sort_keys=True), key) for cell, key in cells.items()]
        with self._db:
            self._db.executemany(
                "INSERT INTO cells (parameters, key) VALUES (?, ?)"
                " ON CONFLICT (parameters) DO UPDATE SET key = excluded.key",
                rows,
            )

    def cells(self) -> dict[Cell, str]:
        """Every cell that was ever asked for and its key, in that order."""
        rows = self._db.execute("SELECT parameters, key FROM cells ORDER BY number")
        return {Cell.of(json.loads(parameters)): key for parameters, key in rows}

    def run(self, key: str) -> Run:
        row = self._db.execute("SELECT status, reason, facts FROM runs WHERE key = ?", (key,)).fetchone()
        return Run(key, row[0], row[1], json.loads(row[2])) if row else Run(key)

    def set_run(self, run: Run) -> None:
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)",
                (run.key, run.status, run.reason, json.dumps(run.facts or {})),
            )

    def forget(self, keys: Sequence[str]) -> None:
        """Remove runs and their chunks, to be measured again."""
        with self._db:
            for table, column in (("runs", "key"), ("chunks", "run"), ("replies", "run")):
                self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(key,) for key in keys])

    def add_chunk(self, key: str, number: int, scores: TokenScores, seconds: float) -> None:
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
                (key, number, seconds, scores.nll.tobytes(), scores.kld.tobytes(), scores.same_top.tobytes()),
            )

    def chunks(self, key: str) -> list[TokenScores]:
        """The scores of a run, chunk by chunk, without the base's."""
        rows = self._db.execute("SELECT nll, kld, same_top FROM chunks WHERE run = ? ORDER BY number", (key,))
        empty = np.empty(0)
        return [
            TokenScores(np.frombuffer(nll), empty, np.frombuffer(kld), np.frombuffer(same, bool))
            for nll, kld, same in rows
        ]

    def chunk_count(self, key: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM chunks WHERE run = ?", (key,)).fetchone()[0])

    def chunk_seconds(self, key: str) -> list[float]:
        rows = self._db.execute("SELECT seconds FROM chunks WHERE run = ? ORDER BY number", (key,))
        return [seconds for (seconds,) in rows]

    def add_replies(self, key: str, replies: Mapping[bytes, Reply]) -> None:
        """What a run replied, by the key of each question."""
        rows = [
            (key, question, reply.total, reply.greedy, None)
            if isinstance(reply, Answer)
            else (key, question, None, None, reply)
            for question, reply in replies.items()
        ]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", rows)

    def replies(self, key: str) -> dict[bytes, Reply]:
        rows = self._db.execute("SELECT question, total, greedy, text FROM replies WHERE run = ?", (key,))
        return {
            question: Answer(total, bool(greedy)) if text is None else text for question, total, greedy, text in rows
        }

    def add_operation(self, plan: str, report: dict[str, Any]) -> None:
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO operations VALUES (?, ?)", (plan, json.dumps(report)))

    def operation(self, plan: str) -> dict[str, Any] | None:
        """What was done under the plan of this key; None if it was not done yet."""
        row = self._db.execute("SELECT report FROM operations WHERE plan = ?", (plan,)).fetchone()
        return json.loads(row[0]) if row else None


@contextmanager
def open_ledger(folder: Path, *, create: bool = False) -> Iterator[Ledger]:
    """The ledger of the study in `folder`; with `create` it is made if it is missing.

    Raises UsageError when there is none, SurgeryError when it is damaged, another program's or a newer version's;
    its file is left as it is.
    """
    path = folder / LEDGER
    if not create and not path.is_file():
        raise UsageError(
            f"{folder}: holds no study ({LEDGER} is missing); make one with surgery compare MODEL -o {folder}"
        )
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=30)
        if create:
            _lay_out(connection)
        version = _check_format(connection, path)
        if create and version == WITHOUT_REPLIES:
            _lay_out_replies(connection)
        yield Ledger(connection)
    except sqlite3.OperationalError as error:  # locked, a full disk, a read-only folder
        raise SurgeryError(f"{path}: cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        raise SurgeryError(f"{path}: damaged or not a ledger ({error}); it was left as it is: move it away") from None
    finally:
        if connection is not None:
            connection.close()


def make_folder(folder: Path) -> None:
    """Make the folder of a study if it is missing. Raises UsageError when it cannot be, or nothing written in it."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`folder` {folder}: is a file; name a folder for the study")
    if not folder.parent.is_dir():
        raise UsageError(f"`folder` {folder}: the folder {folder.parent} does not exist; make it first")
    try:
        folder.mkdir(exist_ok=True)
        (folder / "lock").open("a").close()
    except OSError as error:
        raise UsageError(f"`folder` {folder}: cannot be written: {error.strerror}; name another folder") from None


def _lay_out(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file, in one transaction: whoever reads meanwhile sees all of them or none."""
    connection.execute("PRAGMA journal_mode = WAL")
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        connection.executescript(
            f"BEGIN IMMEDIATE; {SCHEMA} {REPLIES} PRAGMA application_id = {APPLICATION_ID};"
            f" PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
        )


def _lay_out_replies(connection: sqlite3.Connection) -> None:
    """Bring a file of the version before up to this one: it lacks a table, which nothing could be in."""
    connection.executescript(f"BEGIN IMMEDIATE; {REPLIES} PRAGMA user_version = {FORMAT_VERSION}; COMMIT;")


def _check_format(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the file's format: this one, or WITHOUT_REPLIES, which can be read all the same."""
    # The tables first: they come in one transaction with the two numbers, so that where they are seen, these are, too.
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise UsageError(f"{path}: is empty; make a study with surgery compare MODEL -o {path.parent}")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise SurgeryError(f"{path}: is another program's database; name another folder")
    if version < WITHOUT_REPLIES:
        raise SurgeryError(
            f"{path}: was made by an older version of surgery, which did not note what its numbers came from; it was left"
            " as it is: name another folder"
        )
    if version > FORMAT_VERSION:
        raise SurgeryError(f"{path}: was made by a newer version of surgery; update, or name another folder")
    return int(version)


def is_being_measured(folder: Path) -> bool:
    """Whether a process holds the study's lock."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a study's lock. Raises UsageError when another process measures there."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UsageError(
                f"{folder}: another process ({file.read().strip() or 'unknown'}) is measuring there; wait for it to end,"
                " or name another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def known_texts(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The texts of a study by SHA-256, from its ledger's facts: name, sha256, chunks, chunks_asked."""
    return {text["sha256"]: text for text in facts.get("texts", [])}
