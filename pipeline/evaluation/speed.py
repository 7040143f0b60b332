"""How fast models run behind a filled KV cache, and how large it is."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from native.isolated import isolated
from native.model import ContextOptions
from native.speed import PROMPT_TOKENS, SpeedSample, decoded_tokens, measure_speeds
from pipeline.evaluation.statistics import quartiles
from pipeline.progress import Progress, silent


def speeds_at_depths(
    models: Sequence[tuple[Path, ContextOptions]], depths: Iterable[int], progress: Progress = silent
) -> list[list[dict[str, Any]]]:
    """For each model and how it is run, at each of `depths` (tokens in the cache before), its speed and its cache.

    `prompt_speed` and `generation_speed` are in tokens a second, medians and quartiles; `kv_cache_bytes` are those that
    llama.cpp allocates for `n_ctx` tokens. `progress` counts tokens. Raises NativeError when llama.cpp refuses.
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


def _at_depth(rounds: Sequence[SpeedSample]) -> dict[str, Any]:
    return {
        "depth": rounds[0].depth,
        "prompt_speed": quartiles(PROMPT_TOKENS / np.array([sample.prompt_seconds for sample in rounds])),
        "generation_speed": quartiles(1 / np.concatenate([sample.token_seconds for sample in rounds])),
        "n_ctx": rounds[0].n_ctx,
        "kv_cache_bytes": rounds[0].kv_cache_bytes,
    }
