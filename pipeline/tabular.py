"""Results whose heart is a table: shown as one in a notebook, and a frame where pandas or polars is installed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pipeline.errors import SurgeryError

FRAMES = ("pandas", "polars")


class Tabular(ABC):
    """A result with `rows`, all with the same keys, and a `headline` of a few words."""

    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The table: a mapping of names to plain values for each row."""

    def headline(self) -> str:
        """What stands above the table."""
        return type(self).__name__

    def to_frame(self) -> Any:
        """The table as a pandas DataFrame or, without pandas, a polars one. Raises SurgeryError when there is neither."""
        for name in FRAMES:
            if find_spec(name):
                return import_module(name).DataFrame([dict(row) for row in self.rows()])
        raise SurgeryError(f"neither {' nor '.join(FRAMES)} is installed; run: pip install pandas")

    def _repr_html_(self) -> str:
        rows = self.rows()
        names = list(rows[0]) if rows else []
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{escape(_shown(row[name]))}</td>' for name in names)}</tr>" for row in rows)
        caption = f"<caption>{escape(self.headline())}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: Any) -> str:
    """A value as a table shows it: numbers to four significant digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
