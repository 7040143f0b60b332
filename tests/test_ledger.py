"""The ledger read at any moment of another process's work on it."""

import sqlite3
from pathlib import Path

import pytest

from pipeline.compare.ledger import LEDGER, _check_format, _lay_out, open_ledger
from pipeline.errors import UsageError


@pytest.mark.parametrize("statement", range(2))
def test_a_study_laid_out_while_it_is_looked_at_is_not_another_programs(tmp_path: Path, statement: int) -> None:
    """Another process makes the tables just before the reader's first statement, or just after it."""
    path = tmp_path / LEDGER
    writer, reader = sqlite3.connect(path), sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    seen: list[str] = []

    def lay_out_in_between(sql: str) -> None:
        if len(seen) == statement:
            _lay_out(writer)
        seen.append(sql)

    reader.set_trace_callback(lay_out_in_between)
    if statement == 0:
        _check_format(reader, path)
    else:
        with pytest.raises(UsageError, match="is empty"):
            _check_format(reader, path)
    if len(seen) <= statement:
        _lay_out(writer)
    with open_ledger(tmp_path) as ledger:
        assert ledger.facts() == {}
