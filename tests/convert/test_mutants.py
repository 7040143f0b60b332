"""Mutated checkpoints end in a file or in an error of ours; `python -m fuzz` tries many more of them."""

from pathlib import Path
from random import Random

import pytest

from fuzz.checkpoint_mutants import FILES, checkpoint_mutants, write_seed
from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.verify import verified
from pipeline.errors import SurgeryError


def test_the_seed_is_a_whole_checkpoint(tmp_path: Path) -> None:
    assert verified(open_checkpoint(write_seed(tmp_path))).notes == ()


@pytest.mark.parametrize("file", FILES)
def test_mutants_raise_nothing_but_errors_of_ours(file: str, tmp_path: Path) -> None:
    make, read = checkpoint_mutants(tmp_path, file)
    path, written, refused = tmp_path / "mutant", 0, 0
    for number in range(300):
        path.write_bytes(make(Random(f"{file} 0 {number}")))
        try:
            read(path)
            written += 1
        except SurgeryError:
            refused += 1
    assert refused > 100
    assert written > 0
