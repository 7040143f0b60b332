"""What was asked and how it went: items of a task, one value each, for a model and perhaps its base."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.errors import SurgeryError
from pipeline.evaluation.statistics import require_finite
from pipeline.gguf_file.reader import GGUFModel
from pipeline.tasks.statistics import compare, estimate


@dataclass(frozen=True)
class Measured:
    """One metric of a task: `values` has a number an item, or is empty where the metric has no such thing.

    `total`: what the whole of it comes to, by the task's own rule. `names` are those of the items, for pairing.
    """

    task: str
    metric: str
    values: tuple[float, ...]
    names: tuple[str, ...]
    total: float
    higher_is_better: bool | None = True


def result_rows(model: Sequence[Measured], base: Sequence[Measured] | None) -> list[dict[str, Any]]:
    """A row a metric, as JSON: both models' values with their intervals, and the paired difference."""
    theirs = {(m.task, m.metric): m for m in base or ()}
    return [_row(mine, theirs.get((mine.task, mine.metric))) for mine in model]


def _row(mine: Measured, base: Measured | None) -> dict[str, Any]:
    if base and mine.names != base.names:
        raise SurgeryError(f"{mine.task}: model and base were not asked the same items")
    values, theirs = np.array(mine.values), np.array(base.values if base else ())
    for name, numbers in (("the model's", values), ("the base's", theirs)):
        require_finite(f"{mine.task}: {name} {mine.metric}", numbers)
    paired = compare(values, theirs) if base and len(values) else None
    return {
        "task": mine.task,
        "metric": mine.metric,
        "items": len(mine.names),
        "higher_is_better": mine.higher_is_better,
        "value": _estimate(mine, values),
        "base": _estimate(base, theirs) if base else None,
        "difference": asdict(paired) if paired else None,
    }


def _estimate(measured: Measured, values: np.ndarray) -> dict[str, float | None]:
    found = asdict(estimate(values)) if len(values) else {"mean": None, "low": None, "high": None}
    return found | {"mean": measured.total}


def require_same_vocabulary(model: GGUFModel, base: GGUFModel) -> None:
    """Raise SurgeryError when two models do not have the same tokens: they would not be asked the same."""
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"):
        if model.get(key) != base.get(key):
            raise SurgeryError(
                f"`base={base.path}`: has another vocabulary than {model.path} ({key}); name the model that it was made from"
            )
