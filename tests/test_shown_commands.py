"""Commands that README and docs show: each can be typed, so that a renamed option or setting is noticed here."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from pipeline.cli.main import cli
from tests.test_makefile import make

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "log.md")]
BLOCK_LINE = re.compile(r"^    ((?:.*\\\n)*.*)$", re.MULTILINE)
INLINE = re.compile(r"`((?:surgery|make) [^`]+)`")
ELLIPSES = {"...", "…"}


def shown(page: str) -> list[list[str]]:
    """The commands of a page's indented blocks and of its running text, split as a shell does."""
    text = (ROOT / page).read_text()
    lines = [*BLOCK_LINE.findall(text), *(line.replace("\n", " ") for line in INLINE.findall(text))]
    starts = ("surgery ", "make ", "python -m studies")
    return [
        [word for word in shlex.split(line.replace("\\\n", " "), comments=True) if word not in ELLIPSES]
        for line in lines
        if line.startswith(starts)
    ]


def parse(command: click.Command, name: str, words: list[str]) -> None:
    """As click does before it calls the command: arguments are there, options exist, values are of their kind."""
    with command.make_context(name, words):
        pass


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_can_be_typed(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # a study looks for docs/
    made: set[tuple[str, ...]] = set()
    for first, *words in shown(page):
        if first == "make":
            made.add(tuple(words))
        elif first == "python":
            module = words[1] if words[1] != "studies" else "studies.__main__"
            parse(import_module(module).main, module, words[2:])
        elif words[0] != "--version":
            command = cli.get_command(click.Context(cli), words[0])
            assert command is not None, words
            if len(words) > 1:  # the name alone is spoken of
                parse(command, words[0], words[1:])
    together = {target for target, *settings in made if not settings}
    for asked in filter(None, [tuple(together), *(words for words in made if len(words) > 1)]):
        done = make(*asked)
        assert not done.returncode, done.stderr


def test_commands_are_found_where_they_stand() -> None:
    commands = {page: shown(page) for page in PAGES}
    assert ["surgery", "eval", "calibrated.gguf", "--base", "smollm2-135m", "--chunks", "8"] in commands["README.md"]
    assert any("--cache-types" in command for command in commands["docs/comparing.md"])  # behind a line's end
    with pytest.raises(click.UsageError, match="--thresold"):
        parse(import_module("pipeline.cli.operate").command, "operate", ["x", "-o", "y", "--thresold", "0.3"])
