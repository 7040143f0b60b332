"""Numbers as people read them. None, and what is not finite, is a dash."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

NOTHING = "\N{EN DASH}"
MOST_PLACES = 6


def perplexity(cell: Mapping[str, Any]) -> str:
    """A cell's perplexity with its standard error; of a cell that was measured it can be beyond what a float holds."""
    if cell["kld_mean"] is not None and not _known(cell["ppl"]):
        return "> 1e308"
    return with_error(cell["ppl"], cell["ppl_se"], digits=2)


def with_error(value: float | None, error: float | None, *, digits: int = 1) -> str:
    """A value with its standard error, both to the error's first digits (one more when that is a 1): `0.0123 ± 0.0004`."""
    if not _known(value):
        return NOTHING
    if not _known(error) or not error:
        return significant(value)
    places = _places(error, digits)
    if places > MOST_PLACES:
        return f"{value:.1e} ± {error:.0e}"
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def low_to_high(low: float | None, high: float | None) -> str:
    """`0.0115 to 0.0131`, to the second digit of its width."""
    if not _known(low) or not _known(high):
        return NOTHING
    places = max(0, 1 - math.floor(math.log10((high - low) or abs(high) or 1)))
    if places > MOST_PLACES:
        return f"{low:.1e} to {high:.1e}"
    return f"{low:,.{places}f} to {high:,.{places}f}"


def significant(value: float | None, digits: int = 3) -> str:
    if not _known(value):
        return NOTHING
    if not value:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}" if places <= MOST_PLACES else f"{value:.{digits - 1}e}"


def megabytes(count: float | None) -> str:
    return f"{count / 1e6:,.1f} MB" if _known(count) else NOTHING


def mebibytes(count: float | None) -> str:
    return f"{count / 2**20:,.2f} MiB" if _known(count) else NOTHING


def millions(count: float | None) -> str:
    return f"{count / 1e6:,.2f} million" if _known(count) else NOTHING


def percent(share: float | None) -> str:
    return f"{share:.1%}" if _known(share) else NOTHING


def duration(seconds: float | None) -> str:
    if not _known(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _places(error: float, digits: int = 1) -> int:
    """Decimals that show the first digits of `error`, and one more if the first is a 1."""
    if not error:
        return 0
    exponent = math.floor(math.log10(error))
    return max(0, digits - (error / 10**exponent >= 1.95) - exponent)
