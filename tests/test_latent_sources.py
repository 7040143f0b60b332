"""Sources of every kind that can be converted, with all of their cache kept, beside llama.cpp's own logits of them.

Those that transformers knows as well are held against it in tests/convert/test_latent_parity.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from native.model import load_model, open_context
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import open_gguf
from pipeline.latent.convert import LatentReport, convert_to_latent
from pipeline.latent.plan import LatentPlan
from pipeline.latent.rope import Rope, Yarn, rotary_slots
from pipeline.latent.source import require_convertible
from tests.test_latent import EXACT, statistics_of
from tests.tiny_model import TinyModel, tensors_of, write_tiny_model

LATE = replace(EXACT, n_sequences=3, shared=True)
STARTS = (0, 500, 8184)  # a token right before each of the later ones joins it to those before
FLOAT, UNSIGNED, TEXT, ARRAY = (
    gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY,
)  # fmt: skip


def llama3_factors(base: float, pairs: int, factor: float, context: int = 8192) -> np.ndarray:
    """What the frequencies of Llama 3.1 and later are divided by, as its `config.json` has it (rope_type llama3)."""
    plain = base ** (-np.arange(pairs) / pairs)
    turns = context * plain / (2 * np.pi)
    kept = np.clip((turns - 1) / (4 - 1), 0, 1)
    return np.asarray(1 / (kept + (1 - kept) / factor), np.float32)


@dataclass(frozen=True)
class Case:
    """A tiny model, what its metadata say besides, and the factors that its frequencies are divided by."""

    model: TinyModel = field(default_factory=lambda: TinyModel(kv_heads=1))
    metadata: Mapping[str, tuple[Any, gguf.GGUFValueType]] = field(default_factory=dict)
    factors: np.ndarray | None = None


def scaling(kind: str, factor: float, **more: tuple[Any, gguf.GGUFValueType]) -> dict[str, Any]:
    return {
        "llama.rope.scaling.type": (kind, TEXT),
        "llama.rope.scaling.factor": (factor, FLOAT),
        **{f"llama.rope.scaling.{name}": value for name, value in more.items()},
    }


CASES = {
    "linear": Case(metadata=scaling("linear", 4.0)),
    "yarn with a magnitude": Case(
        metadata=scaling("yarn", 8.0, original_context_length=(512, UNSIGNED), attn_factor=(0.8, FLOAT))
    ),
    "factors of 4": Case(factors=np.full(8, 4, np.float32)),
    "neox": Case(TinyModel("qwen2", kv_heads=1)),
    "internlm2": Case(TinyModel("internlm2", kv_heads=1)),
    "heads unequal by layer": Case(
        TinyModel("deci", kv_heads=1), metadata={"deci.attention.head_count_kv": ([1, 2], ARRAY)}
    ),
}


def write_case(path: Path, case: Case) -> Path:
    tensors = tensors_of(case.model)
    if case.factors is not None:
        tensors["rope_freqs.weight"] = case.factors
    if case.model.architecture == "deci":
        two = tensors_of(replace(case.model, kv_heads=2))
        tensors["blk.1.attn_k.weight"] = np.tile(tensors["blk.1.attn_k.weight"], (2, 1))
        tensors["blk.1.attn_v.weight"] = two["blk.1.attn_v.weight"]
    if case.model.architecture == "internlm2":
        tensors["output.weight"] = tensors["token_embd.weight"]
    return write_tiny_model(path, case.model, metadata=case.metadata, tensors=tensors)


def late_tokens(start: int) -> np.ndarray:
    """Eight tokens for the positions from `start` on."""
    return np.random.default_rng(start).integers(0, 256, 8).astype(np.int32)


def late_logits(path: Path) -> np.ndarray:
    """Logits of the `late_tokens` from each of STARTS on, which see all before them: (3, 8, vocabulary)."""
    runs = []
    with load_model(str(path)) as model, open_context(model, LATE) as context:
        for sequence, start in enumerate(STARTS):
            if sequence:  # a sequence starts where it likes while it is empty, and then joins those before it
                context.decode([1], [start - 1], np.array([sequence]), [False])
                context.fork(sequence - 1, sequence)
            context.decode(late_tokens(start), np.arange(start, start + 8), np.full(8, sequence), np.ones(8, bool))
            runs.append(context.logits(8).copy())
    return np.stack(runs)


def converted(path: Path, english: Path, plan: LatentPlan) -> tuple[Path, LatentReport]:
    output = path.with_suffix(".latent.gguf")
    return output, convert_to_latent(
        open_gguf(path), output, plan, statistics_of(path, english, path.parent, chunks=1, chunk_size=128)
    )


@pytest.mark.parametrize("name", CASES)
def test_a_source_with_all_of_its_cache_is_the_source(name: str, english: Path, tmp_path: Path) -> None:
    case = CASES[name]
    path = write_case(tmp_path / "source.gguf", case)
    output, _ = converted(path, english, LatentPlan(cache=1, outtype="f32"))
    source, latent = late_logits(path), late_logits(output)
    assert np.abs(source).max() > 1
    assert np.abs(latent - source).max() < 1e-3


@pytest.mark.parametrize(("pairs", "factor"), [(32, 32), (64, 8), (64, 32)])
def test_llama_3_is_met_but_for_some_pairs_that_are_nearly_met(pairs: int, factor: float) -> None:
    factors = llama3_factors(5e5, pairs, factor).astype(float)
    slots = rotary_slots(Rope(pairs, 5e5), tuple(factors))
    wanted, offered, holds = Rope(pairs, 5e5).frequencies() / factors, slots.rope.frequencies(), np.array(slots.holds)
    assert sorted(holds[holds >= 0]) == list(range(pairs))
    off = np.abs(offered - wanted[holds])[holds >= 0]
    assert off.max() == pytest.approx(slots.deviation)
    assert off.max() < 4e-5
    assert slots.empty <= pairs // 8
    unscaled = factors == 1
    assert off[unscaled].max() < 1e-7  # the stretched base is rounded to single precision


def test_slots_are_those_of_the_source_where_deepseek2_can_be_told_it() -> None:
    for rope in (Rope(8, 1e4), Rope(8, 1e4, 4.0), Rope(8, 1e4, 4.0, Yarn(2048))):
        slots = rotary_slots(rope)
        assert (slots.rope, slots.holds, slots.deviation) == (rope, tuple(range(8)), 0)
    assert rotary_slots(Rope(8, 1e4), (4.0,) * 8).rope == Rope(8, 1e4, 4.0)


def test_frequencies_that_cannot_be_met_are_refused_by_how_far_they_are_off(tmp_path: Path) -> None:
    case = Case(factors=np.linspace(1, 9, 8, dtype=np.float32))
    with pytest.raises(SurgeryError, match=r"off by up to 0\.\d+ radians a token, and 0\.0002 is the most"):
        require_convertible(open_gguf(write_case(tmp_path / "odd.gguf", case)))


def test_few_slots_are_as_far_off_as_the_ramp_that_llama_cpp_shortens() -> None:
    slots = rotary_slots(Rope(32, 1e4, 4.0, Yarn(2048)))
    assert slots.deviation == 0
    few = slots.first(10)
    off = np.abs(few.rope.frequencies() - Rope(32, 1e4, 4.0, Yarn(2048)).frequencies()[:10]).max()
    assert few.deviation == pytest.approx(off)
    assert few.deviation > 5e-4
