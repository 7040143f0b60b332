"""What is fuzzed: how mutants of each kind of file are made, and what reads them."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from gguf import GGMLQuantizationType

from fuzz.checkpoint_mutants import FILES, checkpoint_mutants
from fuzz.gguf_mutants import mutant, take_apart
from native.errors import NativeError
from pipeline.attention import find_attention
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import open_gguf
from pipeline.inspection import summarise
from pipeline.latent.source import require_convertible
from pipeline.observations.importance_matrix import match_importance, read_importance_matrix
from pipeline.observations.moments import MomentSums
from pipeline.observations.statistics_file import open_calibration
from pipeline.operation.layer_groups import check_plan
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.quantization import quantized_types
from tests.statistics import write_made_up_importance, write_made_up_statistics
from tests.tiny_architectures import write_mixture
from tests.tiny_model import TinyModel, write_tiny_model

OURS = (SurgeryError, NativeError)


@dataclass(frozen=True)
class Target:
    """`make` gives the bytes of a mutant; `read` does with such a file what commands do, and may raise only OURS."""

    make: Callable[[Random], bytes]
    read: Callable[[Path], None]


def gguf_models(folder: Path) -> Target:
    """Models of several architectures, types and layouts, inspected and operated on."""
    q8 = GGMLQuantizationType.Q8_0
    kinds = (
        TinyModel(width=32, heads=2, kv_heads=1, feed_forward=32),
        TinyModel(architecture="qwen2", bias=True, width=32, heads=2, kv_heads=1, feed_forward=32),
        TinyModel(architecture="phi3", fused=True, width=32, heads=2, kv_heads=1, feed_forward=32),
        TinyModel(layers=3, without_attention=(1,), width=32, heads=2, kv_heads=2, feed_forward=32, type=q8),
    )
    seeds = [take_apart(write_tiny_model(folder / f"seed-{i}.gguf", kind)) for i, kind in enumerate(kinds)]
    seeds.append(take_apart(write_mixture(folder / "seed-mixture.gguf", 3, 2, shared=32)))
    plans = (
        Plan(threshold=0.5),
        Plan("separate", rank=2),
        Plan("random", threshold=0.7),
        Plan("shared-gate-up", "all", rank=2),
    )

    def read(path: Path) -> None:
        model = open_gguf(path)
        summarise(model)
        quantized_types(model)
        with suppress(*OURS):
            require_convertible(model)
        for name in model.tensors:
            with suppress(*OURS):
                model.read(name)
        find_attention(model)
        plan = plans[len(model.metadata) % len(plans)]
        check_plan(model, plan)
        operate(model, path.with_name("operated.gguf"), plan, threads=1, force=True)
        open_gguf(path.with_name("operated.gguf"))

    return Target(lambda random: mutant(seeds, random), read)


def importance_matrices(folder: Path) -> Target:
    """Importance matrices, matched with a model."""
    model = open_gguf(write_tiny_model(folder / "model.gguf"))
    write_made_up_importance(folder / "seed.gguf", model)
    seed = take_apart(folder / "seed.gguf")

    def read(path: Path) -> None:
        match_importance(read_importance_matrix(path), model, path)

    return Target(lambda random: mutant([seed], random), read)


def statistics(folder: Path) -> Target:
    """Calibration statistics, read in full."""
    seed = take_apart(write_made_up_statistics(folder / "seed.gguf"))

    def read(path: Path) -> None:
        calibration = open_calibration(path)
        MomentSums().add(1, {}, calibration.products())
        for layer in range(2):
            with suppress(*OURS):
                calibration.layer(layer)
        _ = calibration.sketch

    return Target(lambda random: mutant([seed], random), read)


def checkpoints(file: str, folder: Path) -> Target:
    """Checkpoints of which one file is a mutant, converted."""
    return Target(*checkpoint_mutants(folder, file))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "gguf": gguf_models,
    "imatrix": importance_matrices,
    "statistics": statistics,
    **{file: partial(checkpoints, file) for file in FILES},
}


def run_one(target: Target, path: Path, data: bytes) -> None:
    """Write a mutant and read it; what is OURS is an answer."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    with suppress(*OURS):
        target.read(path)
    with suppress(FileNotFoundError):
        os.unlink(path.with_name("operated.gguf"))
