"""Mutated files: some hundreds of each kind on every run of the tests; `make fuzz` goes on for as long as one likes."""

import time
from pathlib import Path

import pytest

from fuzz import __main__ as fuzz
from fuzz.targets import TARGETS, Target
from pipeline.errors import SurgeryError

MUTANTS = 150


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    assert not [n for n in range(MUTANTS) if fuzz.attempt(target, name, 20261125, n, tmp_path, None)]


def test_what_is_not_ours_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MOST_SECONDS", 0.1)

    def answers(error: Exception | None = None, seconds: float = 0) -> bool:
        def read(path: Path) -> None:
            time.sleep(seconds)
            if error:
                raise error

        target = Target(lambda random: random.randbytes(9), read)
        return fuzz.attempt(target, "made up", 0, 1, tmp_path, tmp_path / "kept")

    assert not answers()
    assert not answers(SurgeryError("refused"))
    assert not (tmp_path / "kept").exists()
    assert answers(ValueError("a bug"))
    assert answers(MemoryError())
    assert answers(seconds=1)
    (kept,) = (tmp_path / "kept").iterdir()
    assert len(kept.read_bytes()) == 9
