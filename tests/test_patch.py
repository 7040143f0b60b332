"""Operated tensors put into a quantised model, against quantising the operated file whole with llama.cpp."""

from pathlib import Path

import pytest

from pipeline.gguf_file.reader import open_gguf
from pipeline.observations.importance_matrix import read_importance_matrix
from pipeline.operation.operate import operate, operate_family
from pipeline.operation.patch import write_operated, write_patched
from pipeline.operation.plan import Plan
from pipeline.quantization import quantize
from tests.same_weights import assert_same_weights
from tests.statistics import write_made_up_importance


def assert_same_as_whole(source: Path, folder: Path, kind: str, plan: Plan, importance: Path | None = None) -> None:
    model = open_gguf(source)
    operate_family(model, {folder / "tensors.gguf": plan}, operated_only=True)
    write_operated(model, open_gguf(folder / "tensors.gguf"), folder / "operated.gguf")
    quantize(open_gguf(folder / "operated.gguf"), folder / "whole.gguf", kind, importance_matrix=importance)
    quantize(model, folder / "quantised.gguf", kind, importance_matrix=importance)
    write_patched(
        open_gguf(folder / "quantised.gguf"),
        open_gguf(folder / "tensors.gguf"),
        folder / "patched.gguf",
        importance=read_importance_matrix(importance) if importance else None,
    )
    assert (folder / "patched.gguf").read_bytes() == (folder / "whole.gguf").read_bytes()


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"])
def test_patching_gives_the_file_that_quantising_whole_gives(
    wide: Path, tmp_path: Path, kind: str, with_importance: bool
) -> None:
    write_made_up_importance(tmp_path / "imatrix.gguf", open_gguf(wide))
    importance = tmp_path / "imatrix.gguf" if with_importance else None
    assert_same_as_whole(wide, tmp_path, kind, Plan(threshold=0.7), importance)


def test_patching_a_real_model_that_is_quantised_already(embedded: Path, tmp_path: Path) -> None:
    assert_same_as_whole(embedded, tmp_path, "Q4_K_M", Plan(threshold=0.5, layers="0,29"))


def test_operated_tensors_put_back_make_the_operated_file(embedded: Path, tmp_path: Path) -> None:
    """Also one decomposition for several thresholds gives what each alone gives."""
    model = open_gguf(embedded)
    plans = {tmp_path / f"{share}.gguf": Plan(threshold=share, layers="3", targets="kv") for share in (0.7, 0.9, 1.0)}
    operate_family(model, plans, operated_only=True)
    for path, plan in plans.items():
        operate(model, tmp_path / "alone.gguf", plan, force=True)
        write_operated(model, open_gguf(path), tmp_path / "together.gguf", force=True)
        together, alone = open_gguf(tmp_path / "together.gguf"), open_gguf(tmp_path / "alone.gguf")
        assert {key: entry.raw for key, entry in together.metadata.items()} == {
            key: entry.raw for key, entry in alone.metadata.items()
        }
        assert_same_weights(together, alone)
