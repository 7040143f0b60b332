"""What does not work, and why: an outcome that is not a success and not named here makes the run fail."""

import re
from fnmatch import fnmatch
from typing import NamedTuple

from conformance.checks import Outcome


class Known(NamedTuple):
    """Models and checks by pattern, the state, what the detail says, and the reason for the page."""

    models: str
    checks: str
    state: str
    says: str
    reason: str


KNOWN: list[Known] = [
    Known(
        "mamba*", "*", "refused", "no layer of this mamba2? model has attn_q", "a state space: there is no attention"
    ),
    Known(
        "*",
        "*",
        "refused",
        "is a diffusion model",
        "a diffusion model: it predicts no next token to evaluate or answer by",
    ),
]


def reason_for(model: str, check: str, outcome: Outcome) -> str | None:
    """Why an outcome is no success; None where that is not known."""
    for known in KNOWN:
        if (
            fnmatch(model, known.models)
            and fnmatch(check, known.checks)
            and outcome.state == known.state
            and re.search(known.says, outcome.detail)
        ):
            return known.reason
    return None
