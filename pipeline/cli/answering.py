"""One answer as it comes: streamed to the terminal, its lines broken between words, then how fast it was."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
from rich.cells import cell_len

from native.generate import AnswerStatistics, Chat
from pipeline.cli.output import counted, echo
from pipeline.conversation import ask
from pipeline.visible import visible


def answer(
    name: str,
    conversation: Chat,
    message: str,
    *,
    label: bool,
    quiet: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Stream one answer to the terminal, unless `quiet`; what was said, with its statistics."""
    if label and not quiet:
        click.secho(f"--- {visible(name)}", bold=True)  # noqa: TID251
    lines = BrokenLines(shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
    pieces: list[str] = []
    for event in ask(conversation, message, stopped):
        if isinstance(event, AnswerStatistics):
            if not quiet:
                echo(lines.rest() if lines else "")
                print_statistics(event)
            return {"model": name, "text": "".join(pieces), **asdict(event)}
        pieces.append(event)
        if not quiet:
            echo(lines.add(visible(event, keep="\n\t")) if lines else event, nl=False)
    raise AssertionError("an answer ends with its statistics")


def print_statistics(statistics: AnswerStatistics) -> None:
    prompt_speed = (statistics.prompt_tokens - statistics.cached_tokens) / statistics.prompt_seconds
    speed = statistics.generated_tokens / statistics.generation_seconds
    why = {
        "stop": "; ended by itself",
        "length": "; cut off by --max-tokens",
        "context": "; cut off, the context is full",
        "interrupted": "; stopped",
    }[statistics.finish_reason]
    echo(
        f"[prompt {counted(statistics.prompt_tokens, 'token')}, {prompt_speed:,.0f}/s; answer {counted(statistics.generated_tokens, 'token')}, {speed:,.0f}/s{why}]\n",
        err=True,
    )


class BrokenLines:
    """Text that comes in pieces, in lines of at most `width` cells that end between words, if a word is no longer.

    A word is held back until it is whole; characters that are two cells wide, as Chinese ones, are words of their own.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._column = 0
        self._gap = self._word = ""

    def add(self, text: str) -> str:
        """What can be shown once `text` has come."""
        shown = []
        for character in text:
            if character == "\n":
                shown.append(self._placed() + "\n")
                self._column, self._gap = 0, ""
            elif character.isspace():
                shown.append(self._placed())
                self._gap += character
            elif cell_len(character) > 1:
                shown.append(self._placed())
                self._word = character
                shown.append(self._placed())
            else:
                self._word += character
        return "".join(shown)

    def rest(self) -> str:
        """What was held back."""
        return self._placed()

    def _placed(self) -> str:
        """The word behind its gap, or at the start of a new line; the gap of a line's start is its indentation."""
        if not self._word:
            return ""
        text = self._gap + self._word
        if self._column and self._column + cell_len(text) > self.width:
            text, self._column = f"\n{self._word}", cell_len(self._word)
        else:
            self._column += cell_len(text)
        self._gap = self._word = ""
        return text
