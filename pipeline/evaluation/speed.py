"""How fast models run behind a filled KV cache, and how large it is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from native.isolated import isolated
from native.model import ContextOptions
from native.speed import PROMPT_TOKENS, SpeedSample, decoded_tokens, measure_speeds
from pipeline.evaluation.statistics import Quartiles, quartiles
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class Speed:
    """How fast a model is behind `depth` tokens in its KV cache, in tokens a second, and how large its cache is.

    kv_cache_bytes: what llama.cpp allocates for `n_ctx` tokens: depth, prompt and generated ones
    """

    depth: int
    prompt_speed: Quartiles
    generation_speed: Quartiles
    n_ctx: int
    kv_cache_bytes: int


def speeds_at_depths(
    models: Sequence[tuple[Path, ContextOptions]], depths: Iterable[int], progress: Progress = silent
) -> list[list[Speed]]:
    """The speed of each model, run as its options say, at each of `depths`.

    `progress` counts tokens. Raises NativeError when llama.cpp refuses.
    """
    depths = list(dict.fromkeys(depths))
    samples: list[SpeedSample] = []
    done, total = 0, decoded_tokens(len(models), depths)
    progress(0, total, "")
    for event in isolated(measure_speeds, [(str(path), options) for path, options in models], depths):
        if isinstance(event, SpeedSample):
            samples.append(event)
        else:
            progress(done := done + event, total, "")
    return [
        [_at_depth([s for s in samples if (s.model, s.depth) == (number, depth)]) for depth in depths]
        for number in range(len(models))
    ]


def _at_depth(rounds: Sequence[SpeedSample]) -> Speed:
    prompt = quartiles(PROMPT_TOKENS / np.array([sample.prompt_seconds for sample in rounds]))
    generation = quartiles(1 / np.concatenate([sample.token_seconds for sample in rounds]))
    assert prompt is not None  # there is no depth without rounds
    assert generation is not None
    return Speed(rounds[0].depth, prompt, generation, rounds[0].n_ctx, rounds[0].kv_cache_bytes)
