"""A revision is another one exactly when what is computed may be another thing."""

from pathlib import Path

import pytest

from pipeline import revision as module
from pipeline.revision import ALGORITHMS, ROOT, made_with, revision

SOURCE = '''"""Doubles."""

import math


def twice(x: float) -> float:
    """Two times x."""
    if x < 0:
        raise ValueError(f"{x}: is below 0")
    return 2 * x  # exactly


FACTOR: float = 3
'''
SAME = {
    "a comment": ("# exactly", "# in binary"),
    "a docstring": ("Two times x.", "Twice."),
    "a message": ("is below 0", "must not be negative"),
    "an annotation": ("(x: float) -> float", "(x)"),
    "an import": ("import math\n", "import math\nimport os\n"),
    "layout": ("    return 2 * x", "\n\n    return 2 * (x)"),
    "order": (SOURCE, SOURCE.replace("FACTOR: float = 3\n", "").replace("\n\ndef", "\n\nFACTOR: float = 3\n\n\ndef")),
}
ANOTHER = {
    "a number": ("2 * x", "3 * x"),
    "an operator": ("2 * x", "2 + x"),
    "a condition": ("x < 0", "x <= 0"),
    "a constant": ("= 3", "= 4"),
}


def revision_of(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "twice.py").write_text(source)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "ALGORITHMS", {"doubling": ("twice.py",)})
    revision.cache_clear()
    found = revision("doubling")
    revision.cache_clear()
    return found


@pytest.mark.parametrize("change", [*SAME, *ANOTHER])
def test_what_is_computed_decides(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (SAME | ANOTHER)[change]
    changed = SOURCE.replace(before, after)
    assert changed != SOURCE
    same = revision_of(SOURCE, tmp_path, monkeypatch) == revision_of(changed, tmp_path, monkeypatch)
    assert same == (change in SAME)


def test_every_algorithm_has_its_modules() -> None:
    for name, places in ALGORITHMS.items():
        assert all((ROOT / place).exists() for place in places), name
    assert len({revision(name) for name in ALGORITHMS}) == len(ALGORITHMS)
    made = made_with(3, "scores")
    assert made["threads"] == 3
    assert made["revisions"] == {"scores": revision("scores")}
    assert all(made[name] for name in ("llama_cpp", "instruction_set", "numpy", "blas", "machine"))
