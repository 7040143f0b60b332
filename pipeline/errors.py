"""The exceptions a user can meet. The command line turns each into one line and an exit code.

Messages name arguments as Python has them, in backticks: `threshold=2`. The command line says --threshold 2 instead.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class SurgeryError(Exception):
    """Something went wrong while working: the message names the file or tensor and what to do.

    `argument` is the name of the argument that was at fault, if one was.
    """

    exit_code = 1

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class UsageError(SurgeryError):
    """What was asked for cannot be done: the message names the argument, what was expected and what to do."""

    exit_code = 2

    @classmethod
    def of(cls, argument: str, value: object, problem: str) -> "UsageError":
        """Of an argument whose `value` is the `problem`."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 5000 is not to be read as 5000.0
        shown = str(value) if isinstance(value, Path) else repr(value)
        return cls(f"`{argument}={shown}`: {problem}", argument=argument)


def suggestion(name: str, names: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest of `names`, whatever their case; nothing if none is near."""
    known = {known.lower(): known for known in names}
    nearest = get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {known[nearest[0]]}?" if nearest else ""


def no_file(path: Path) -> str:
    """Why there is no file to read at `path`, for a message."""
    return "is a folder" if path.is_dir() else "no such file"
