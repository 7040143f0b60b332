"""What was asked and how it went: items of a task, one value each, for a model and perhaps its base."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import SurgeryError
from pipeline.evaluation.statistics import require_finite
from pipeline.gguf_file.reader import GGUFModel
from pipeline.tasks.statistics import Comparison, Estimate, compare, estimate


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


@dataclass(frozen=True)
class TaskResult:
    """One metric of a task: a model's value, its base's, and the difference over the same items, each with its interval.

    `base` and `difference` are None without a base; `difference` also where the metric is no mean over items.
    """

    task: str
    metric: str
    items: int
    higher_is_better: bool | None
    value: Estimate
    base: Estimate | None
    difference: Comparison | None


def task_results(model: Sequence[Measured], base: Sequence[Measured] | None) -> list[TaskResult]:
    """A result a metric. Raises SurgeryError for items that the base was not asked, or a value that is not finite."""
    theirs = {(m.task, m.metric): m for m in base or ()}
    return [_result(mine, theirs.get((mine.task, mine.metric))) for mine in model]


def _result(mine: Measured, base: Measured | None) -> TaskResult:
    if base and mine.names != base.names:
        raise SurgeryError(f"{mine.task}: model and base were not asked the same items")
    values, theirs = np.array(mine.values), np.array(base.values if base else ())
    for name, numbers in (("the model's", values), ("the base's", theirs)):
        require_finite(f"{mine.task}: {name} {mine.metric}", numbers)
    return TaskResult(
        mine.task,
        mine.metric,
        len(mine.names),
        mine.higher_is_better,
        _estimate(mine, values),
        _estimate(base, theirs) if base else None,
        compare(values, theirs) if base and len(values) else None,
    )


def _estimate(measured: Measured, values: np.ndarray) -> Estimate:
    return replace(estimate(values), mean=measured.total) if len(values) else Estimate(measured.total, None, None)


def require_same_vocabulary(model: GGUFModel, base: GGUFModel) -> None:
    """Raise SurgeryError when two models do not have the same tokens: they would not be asked the same."""
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens"):
        if model.get(key) != base.get(key):
            raise SurgeryError(
                f"`base={base.path}`: has another vocabulary than {model.path} ({key}); name the model that it was made from"
            )
