"""What models can still do, as tables: values with 95 % intervals, and differences over the same items."""

from collections.abc import Sequence

from pipeline.cli.output import counted, echo, print_table
from pipeline.compare.found import StudyResult
from pipeline.tasks.items import TaskResult
from pipeline.tasks.passkey import PasskeyShare
from pipeline.tasks.statistics import Estimate

SHADES = " ░▒▓█"
INTERVAL = "95 % interval"
DIFFERENCE = ("difference", INTERVAL, "gained", "lost", "p")


def print_results(results: Sequence[TaskResult]) -> None:
    """A line a metric. A narrow terminal is spared what the rest can do without, the difference's interval last."""
    compared = any(result.base for result in results)
    headings = ("task", "metric", "items", "model", INTERVAL, *(("base", INTERVAL, *DIFFERENCE) if compared else ()))
    rows = [
        (
            result.task,
            result.metric,
            f"{result.items:,}",
            *_estimate(result.value),
            *((*_estimate(result.base), *_difference(result)) if compared else ()),
        )
        for result in results
    ]
    metric = [1] if len({result.task for result in results}) == len(results) else []  # else it tells lines apart
    print_table(headings, rows, dispensable=(6, 9, 10, 4, 2, 11, 5, *metric, 8) if compared else (2, *metric, 4))


def print_study_tasks(results: StudyResult) -> None:
    """A table a metric: the source, and every cell that was asked, held against it."""
    for source in results.base.tasks:
        cells = [
            (c.label, t) for c in results.cells for t in c.tasks if (t.task, t.metric) == (source.task, source.metric)
        ]
        echo(f"\n{source.task}: {source.metric} of {counted(source.items, 'item')}")
        rows = [(label, *_estimate(result.value), *_difference(result)) for label, result in cells]
        print_table(
            ("cell", "value", INTERVAL, *DIFFERENCE),
            [("source", *_estimate(source.value), *[""] * len(DIFFERENCE)), *rows],
            dispensable=(5, 6, 2, 7, 4),
        )


def _estimate(value: Estimate | None) -> tuple[str, str]:
    return ("", "") if value is None else (f"{value.mean:.4f}", _interval(value, ".4f"))


def _difference(result: TaskResult) -> tuple[str, ...]:
    found = result.difference
    if found is None:
        return ("",) * len(DIFFERENCE)
    counts = ["" if count is None else f"{count:,}" for count in (found.gained, found.lost)]
    p = "" if found.p is None else f"{found.p:.2g}"
    return (f"{found.difference.mean:+.4f}", _interval(found.difference, "+.4f"), *counts, p)


def _interval(value: Estimate, pattern: str) -> str:
    return "" if value.low is None or value.high is None else f"{value.low:{pattern}} to {value.high:{pattern}}"


def print_heat_map(name: str, shares: Sequence[PasskeyShare]) -> None:
    """The share found by depth and place, a table a number of needles; the darker, the more."""
    for needles in dict.fromkeys(share.needles for share in shares):
        mine = [share for share in shares if share.needles == needles]
        places = dict.fromkeys(share.place for share in mine)
        echo(f"\n{name}: {'a number' if needles == 1 else f'one of {needles} numbers'} in a text, found by place")
        rows = []
        for depth in dict.fromkeys(share.depth for share in mine):
            found = [share.found for share in mine if share.depth == depth]
            rows.append((f"{depth:,} tokens", *(f"{SHADES[round(share * 4)]} {share:4.0%}" for share in found)))
        print_table(("", *(f"{place:.0%}" for place in places)), rows)
