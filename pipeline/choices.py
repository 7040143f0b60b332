"""What can be chosen, declared once with a plan's field; options, grid files and the plan's checks are made of it."""

import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from pipeline.errors import UsageError, suggestion

CHOICE = "choice"  # the key of a field's metadata


@dataclass(frozen=True)
class Choice:
    """What the value of a field can be, and what is said about it.

    kind: int, float, str or bool; a whole number is a float as well
    help: for the command line, without the default
    expected: what a value should be, for messages
    low, high: bounds of numbers; with `above` it must be above `low`
    names: the only values, for texts; pattern: what texts must match
    """

    kind: type
    help: str
    expected: str = ""
    low: float | None = None
    high: float | None = None
    above: bool = False
    names: tuple[str, ...] = ()
    pattern: str | None = None
    metavar: str | None = None

    def allows(self, value: Any) -> bool:
        """Whether a value is of the kind and within the bounds."""
        if self.kind is str:
            named = not self.names or value in self.names
            return isinstance(value, str) and named and bool(re.fullmatch(self.pattern or ".*", value))
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if not isinstance(value, int if self.kind is int else int | float):
            return False
        low = self.low is None or (value > self.low if self.above else value >= self.low)
        return low and (self.high is None or value <= self.high) and abs(value) != float("inf")

    @property
    def expectation(self) -> str:
        return self.expected or f"one of {', '.join(self.names)}"


def choice(default: Any, kind: type, help: str, *, names: Iterable[str] = (), **rest: Any) -> Any:
    """A dataclass field with a `Choice`; None as the default may be left as it is."""
    return field(default=default, metadata={CHOICE: Choice(kind, help, names=tuple(names), **rest)})


def choices_of(plan: type) -> dict[str, tuple[Choice, Any]]:
    """Each choice of a dataclass by its field's name, with its default."""
    return {f.name: (f.metadata[CHOICE], _default(f)) for f in fields(plan) if CHOICE in f.metadata}


def check_choices(plan: Any) -> None:
    """Raise UsageError for a value that a field cannot have."""
    for name, (choice, default) in choices_of(type(plan)).items():
        value = getattr(plan, name)
        if not (value is None and default is None) and not choice.allows(value):
            near = suggestion(value, choice.names) if isinstance(value, str) else ""
            raise UsageError.of(name, value, f"expected {choice.expectation}{near}")


def _default(f: Field[Any]) -> Any:
    return None if f.default is MISSING else f.default
