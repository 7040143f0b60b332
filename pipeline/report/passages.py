"""The same prompt answered by the source and by the cells, with the place where they part."""

from dataclasses import dataclass

from pipeline.report.cells import Cell, Results, is_operated, is_source, name
from pipeline.report.numbers import significant

END = "(ends here)"
QUOTED = "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}"


@dataclass(frozen=True)
class Passage:
    """A cell's answer: `before` is what the source says, too, `different` the first token that it does not, or "".

    `chosen` ones are shown at first.
    """

    label: str
    loss: str
    verdict: str
    before: str
    different: str
    after: str
    chosen: bool


def passages(results: Results, best: Cell | None) -> list[Passage]:
    """One for every cell that answered, the least loss first; none when the source did not answer.

    Chosen are the cell `best`, the operated one that loses least, and the two that lose most.
    """
    source = results["base"]["answer"]
    if source is None:
        return []
    cells = [cell for cell in results["cells"] if cell["answer"] is not None and not is_source(cell)]
    cells.sort(key=lambda cell: float("inf") if cell["kld_mean"] is None else cell["kld_mean"])
    operated = [cell for cell in cells if is_operated(cell)]
    chosen = [cell for cell in (best, *operated[:1], *cells[-2:]) if cell]
    return [passage(source, cell, any(cell is one for one in chosen)) for cell in cells]


def passage(source: list[str], cell: Cell, chosen: bool) -> Passage:
    """`first_difference` may be just past the last piece of either answer, which then ends there."""
    pieces, first = cell["answer"], cell["first_difference"]
    loss = f"{significant(cell['kld_mean'])} nats a token"
    if first is None:
        return Passage(name(cell), loss, "says what the source says", "".join(pieces), "", "", chosen)
    said = f"says {QUOTED.format(source[first].strip())}" if first < len(source) else "ends"
    verdict = f"parts at token {first + 1}, where the source {said}"
    piece = pieces[first] if first < len(pieces) else f" {END}"
    different = piece.lstrip() or piece
    before = "".join(pieces[:first]) + piece.removesuffix(different)
    return Passage(name(cell), loss, verdict, before, different, "".join(pieces[first + 1 :]), chosen)
