"""What a check came to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """`state` is works, refused or wrong; `detail` the reason, or what was measured."""

    state: str
    detail: str = ""


class WrongError(Exception):
    """Something differs from what it is held against."""
