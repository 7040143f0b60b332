"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[float, float, str], None]
"""Called with what is done, the total, both in the unit of the work, and a note such as an intermediate result."""


def silent(done: float, total: float, note: str) -> None:
    """A Progress that nobody watches."""
