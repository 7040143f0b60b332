"""The tables and pictures of README and docs: written by what made them, which says whether they changed."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pipeline.errors import SurgeryError
from pipeline.json_text import json_text


def document(page: Path, name: str, text: str) -> None:
    """Put `text` between the marks `<!-- NAME -->` and `<!-- end of NAME -->` of a page, and print what is new in it.

    Raises SurgeryError when the page has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.read_text().partition(begin)
    old, closed, after = rest.partition(end)
    if not (found and closed):
        raise SurgeryError(f"{page}: expected the lines {begin.strip()} and {end}, between which a table is written")
    new = f"\n{text.strip()}\n\n"
    changed = [line for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]
    tell(f"{page}, {name}", changed=bool(changed))
    for line in changed:
        click.echo(f"    {line}")
    page.write_text(before + begin + new + end + after)


@contextmanager
def watched(path: Path) -> Iterator[None]:
    """Says, once it is written, whether a picture or file is another than before."""
    before = path.read_bytes() if path.exists() else None
    yield
    tell(str(path), changed=path.read_bytes() != before)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, and say whether that is new."""
    with watched(path):
        path.write_text(json_text(value, indent=1) + "\n")


def tell(what: str, *, changed: bool) -> None:
    """One line that begins alike for all that changed."""
    click.echo(f"{'changed  ' if changed else 'unchanged'}  {what}")


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown has it."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows))
