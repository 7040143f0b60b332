"""The question of a study answered in sentences, from its numbers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.report.cells import (
    CACHE,
    FACTORED,
    FILE,
    Cell,
    Results,
    Size,
    different,
    is_measured,
    is_operated,
    is_source,
    name,
    smallest,
    source_cell,
    worst_text,
)
from pipeline.report.numbers import low_to_high, mebibytes, megabytes, significant

QUESTION = "Which combination of surgery and quantisation loses least for its size?"
LIMITS = (0.01, 0.03, 0.1, 0.3, 1.0)
LIMIT = 0.1
FEW_CHUNKS = 8  # of a text
WIDE = 0.5  # of the mean, from one end of the interval to the other
VERDICTS = {
    "adds up": "the sum of both alone",
    "more than adds up": "more than the sum of both alone",
    "less than adds up": "less than the sum of both alone",
}


@dataclass(frozen=True)
class Answer:
    """`headline` follows `label`, whoever is the best; `best` is the best cell, None when nothing is measured.

    `preliminary` says why the numbers may yet change, if they may.
    `choices` has a row for every limit in nats a token: the smallest cell within it, by each of `sizes`.
    """

    best: Cell | None
    label: str
    headline: str
    sentences: list[str] = field(default_factory=list)
    preliminary: str = ""
    sizes: list[Size] = field(default_factory=list)
    choices: list[tuple[float, list[Cell | None]]] = field(default_factory=list)

    @property
    def text(self) -> list[str]:
        return [f"{self.label}{self.headline}", *([self.preliminary] if self.preliminary else []), *self.sentences]


def answer(results: Results) -> Answer:
    """The combination to take within LIMIT, or that which loses least when none stays within it."""
    combinations = [cell for cell in results["cells"] if is_measured(cell) and not is_source(cell)]
    if not results["cells"]:
        return Answer(None, "Nothing", " is compared yet.")
    if not combinations:
        return Answer(None, "Nothing", f" is measured yet, of {_count(results['cells'])}.", [*_unfinished(results)])
    source = source_cell(results)
    candidates = [*combinations, *([source] if source else [])]
    best = smallest(combinations, FILE, LIMIT)
    chosen = best or min(combinations, key=lambda cell: float(cell["kld_mean"]))
    label, headline = _headline(chosen, results, within=best is not None)
    sizes = [size for size in (FILE, FACTORED, CACHE) if len(different(combinations, size.key)) > 1 or size is FILE]
    return Answer(
        chosen,
        label,
        headline,
        [
            _yardstick(best, combinations),
            *(_what_surgery_does(best, combinations) if best else ()),
            *_beyond_quantisation(combinations),
            *_smaller_cache(combinations, results),
            *_interactions(combinations),
            *_unfinished(results),
        ],
        _preliminary(chosen, results),
        sizes,
        [(limit, [smallest(candidates, size, limit) for size in sizes]) for limit in LIMITS],
    )


def _preliminary(chosen: Cell, results: Results) -> str:
    """Why the answer rests on too little, in a sentence; empty when it does not."""
    chunks = min((text["chunks"] for text in chosen["texts"]), default=chosen["chunks"])
    if chunks < FEW_CHUNKS:
        each = "each text" if len(chosen["texts"]) > 1 else "the text"
        count = f"{chunks} chunk{'s' if chunks != 1 else ''} of {each}"
        return (
            f"Preliminary: {count} is little, and what so few vary by is itself hardly known. More chunks add to these."
        )
    worst = worst_text(chosen)
    if worst["kld_low"] is None or worst["kld_high"] - worst["kld_low"] <= WIDE * worst["kld_mean"]:
        return ""
    return f"Preliminary: the interval of {name(chosen)} is wide, and more chunks would narrow it."


def _loss(cell: Cell) -> str:
    """What a cell loses on its worst text, which is named if there are several, then with the mean of all."""
    worst = worst_text(cell)
    known = worst["kld_low"] is not None and worst["kld_high"] is not None
    loss = f"{significant(worst['kld_mean'])} nats a token"
    loss += f" (95% interval {low_to_high(worst['kld_low'], worst['kld_high'])})" if known else ""
    return loss + (
        f" on {worst['text']}, its worst text ({significant(cell['kld_mean'])} on average)" if worst is not cell else ""
    )


def _headline(cell: Cell, results: Results, *, within: bool) -> tuple[str, str]:
    size, source = cell["file_bytes"], results["base"]["file_bytes"]
    at = f" at {megabytes(size)}" if size is not None else ""
    if size is None or not source:
        return name(cell), f" loses least for its size: {_loss(cell)}{at}."
    if size >= source:
        return (
            "The source itself",
            f" loses least for its size: nothing that loses little is smaller than its {megabytes(source)}. "
            f"Nearest comes {name(cell)}: {_loss(cell)}{at}.",
        )
    verb = "loses least for its size" if within else "loses least, but much"
    return name(cell), f" {verb}: {_loss(cell)}{at}, {size / source:.0%} of the source's {megabytes(source)}."


def _yardstick(best: Cell | None, combinations: list[Cell]) -> str:
    several = any(len(cell["texts"]) > 1 for cell in combinations)
    limit = f"below {LIMIT:g} nats a token{' on every text' * several}, which is about a tenth more perplexity"
    if best:
        return f"Of {_count(combinations)}, {name(best)} is the smallest file whose 95% interval lies {limit}."
    return f"Of {_count(combinations)}, none has a 95% interval that lies {limit}."


def _what_surgery_does(best: Cell, combinations: list[Cell]) -> Iterator[str]:
    operated = [cell for cell in combinations if is_operated(cell)]
    alone = smallest([cell for cell in combinations if not is_operated(cell)], FILE, LIMIT)
    if not operated:
        return
    if is_operated(best):
        if alone:
            size = megabytes(alone["file_bytes"])
            yield f"Without surgery the smallest within that limit is {name(alone)}: {_loss(alone)} at {size}."
        else:
            yield "No quantisation alone stays within that limit."
        return
    factored = smallest(combinations, FACTORED, LIMIT)
    if factored and is_operated(factored) and factored["factored_bytes"] < best["file_bytes"]:
        less = 1 - factored["factored_bytes"] / best["file_bytes"]
        yield (
            "Surgery makes no file smaller, because its product is stored, not its factors. If the factors were stored, "
            f"{name(factored)} would take {megabytes(factored['factored_bytes'])}, {less:.0%} less, and lose {_loss(factored)}."
        )
    else:
        yield "Surgery makes no smaller file within that limit, even if its factors were stored instead of their product."


def _beyond_quantisation(combinations: list[Cell]) -> Iterator[str]:
    measured = [cell for cell in combinations if cell["over_quant"] and cell["over_quant"]["low"] is not None]
    if measured:
        cell = min(measured, key=lambda cell: float(cell["over_quant"]["mean"]))
        over = cell["over_quant"]
        between = low_to_high(over["low"], over["high"])
        unclear = ", not told apart from 0" if over["low"] <= 0 <= over["high"] else ""
        yield (
            f"The surgery that adds least to its quantisation, {name(cell)}, adds "
            f"{significant(over['mean'])} nats a token (95% interval {between}{unclear})."
        )


def _smaller_cache(combinations: list[Cell], results: Results) -> Iterator[str]:
    cell, source = smallest(combinations, CACHE, LIMIT), results["base"]["kv_cache_bytes"]
    if cell and source and cell["kv_cache_bytes"] < source:
        sizes = f"{mebibytes(cell['kv_cache_bytes'])} instead of {mebibytes(source)}"
        yield f"The smallest KV cache within that limit, {sizes}, is that of {name(cell)}: {_loss(cell)}."


def _interactions(combinations: list[Cell]) -> Iterator[str]:
    verdicts = Counter(cell["interaction"]["verdict"] for cell in combinations if cell["interaction"])
    if verdicts:
        counts = [
            f"{VERDICTS.get(verdict, verdict)} in {number} case{'s' if number != 1 else ''}"
            for verdict, number in verdicts.most_common()
        ]
        yield f"Surgery and quantisation together lose {', '.join(counts)}."


def _unfinished(results: Results) -> Iterator[str]:
    states = Counter(cell["status"] for cell in results["cells"] if cell["status"] != "done")
    if states:
        counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
        may_change = "; the answer may change" if states.keys() & {"pending", "running"} else ""
        yield f"Not all of {_count(results['cells'])} are complete: {counts}{may_change}."


def _count(cells: list[Cell]) -> str:
    return f"{len(cells)} combination{'s' if len(cells) != 1 else ''}"
