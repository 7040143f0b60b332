"""Numbers as click parameters: what is none, or is out of range, gets the same line as the library's own checks."""

import math
from collections.abc import Callable
from typing import Any

import click

from pipeline.errors import UsageError, suggestion

LARGEST = 2**31 - 1  # llama.cpp counts in 32 bits


class WholeNumber(click.IntRange):
    """A whole number from `low` to `high`; help does not speak of LARGEST."""

    name = "integer"

    def __init__(self, low: int, high: int = LARGEST) -> None:
        super().__init__(low, None if high == LARGEST else high)
        self.high = high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return _expect(
            f"a whole number from {self.min} to {self.high}",
            super().convert, lambda number: number <= self.high, value, param, ctx,
        )  # fmt: skip


class Number(click.FloatRange):
    """A finite number in click's range; `expected` says which, for the message."""

    name = "float"

    def __init__(self, expected: str, low: float, high: float | None = None, *, above: bool = False) -> None:
        super().__init__(low, high, min_open=above)
        self.expected = expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return _expect(self.expected, super().convert, math.isfinite, value, param, ctx)


class Choice(click.Choice[str]):
    """One of some names; for another, the message has the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            names = [str(choice) for choice in self.choices]
            raise UsageError(
                f"{parameter_name(param)} {value}: expected one of {', '.join(names)}{suggestion(str(value), names)}"
            ) from None


def _expect(
    expected: str,
    convert: Callable[..., Any],
    allowed: Callable[[Any], bool],
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> Any:
    try:
        number = convert(value, param, ctx)
        if allowed(number):
            return number
    except click.BadParameter:
        pass
    raise UsageError(f"{parameter_name(param)} {value}: expected {expected}")


def parameter_name(param: click.Parameter | None) -> str:
    """The name that the user knows: --long-option or ARGUMENT."""
    if isinstance(param, click.Argument):
        return param.human_readable_name
    return max(param.opts, key=len) if param else ""
