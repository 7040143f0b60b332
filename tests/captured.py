"""What a model saw of a text, captured in a process of its own."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from native.capture import CapturedPart, CaptureStart, capture_moments
from native.isolated import isolated
from native.model import ContextOptions
from native.triangle import unpack
from pipeline.attention import find_projections
from pipeline.calibration.calibrate import watched_inputs
from pipeline.gguf_file.reader import open_gguf
from pipeline.targets import QKV

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune is in want. " * 3


def capture(
    path: Path, text: str, *, n_ctx: int, chunks: int | None = None, skip: int = 0, roles: Collection[str] = QKV
) -> tuple[CaptureStart, list[CapturedPart]]:
    watched = watched_inputs(find_projections(open_gguf(path), roles))
    options = ContextOptions(n_ctx=n_ctx, n_batch=n_ctx)
    events = list(isolated(capture_moments, str(path), text, watched, chunks=chunks, skip=skip, options=options))
    start = events[0]
    assert isinstance(start, CaptureStart)
    rounds: list[CapturedPart] = []
    inputs: dict[int, dict[str, dict[str, np.ndarray]]] = {}
    for part in (event for event in events if isinstance(event, CapturedPart)):
        for layer, names in part.inputs.items():
            for name, sums in names.items():
                matrices = {what: unpack(sums[what]) for what in ("second_moment", "received") if what in sums}
                inputs.setdefault(layer, {})[name] = sums | matrices
        if part.chunks:  # the last part of a round
            rounds.append(CapturedPart(part.chunks, inputs, part.products))
            inputs = {}
    return start, rounds


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
