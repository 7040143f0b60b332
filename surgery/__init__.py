"""Surgery on a model's attention, from Python: what the commands do, with the same words; docs/python.md shows it.

Everything is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.compare.grid import Grid
    from pipeline.errors import SurgeryError, UsageError
    from pipeline.latent.plan import LatentPlan
    from pipeline.operation.plan import Plan
    from surgery.making import calibrate, convert_to_latent, open_model, operate, quantize
    from surgery.measuring import ask, compare, evaluate, load_study

__all__ = [
    "Grid",
    "LatentPlan",
    "Plan",
    "SurgeryError",
    "UsageError",
    "ask",
    "calibrate",
    "compare",
    "convert_to_latent",
    "evaluate",
    "load_study",
    "open_model",
    "operate",
    "quantize",
]

_HOMES = {
    "pipeline.compare.grid": ("Grid",),
    "pipeline.errors": ("SurgeryError", "UsageError"),
    "pipeline.latent.plan": ("LatentPlan",),
    "pipeline.operation.plan": ("Plan",),
    "surgery.making": ("calibrate", "convert_to_latent", "open_model", "operate", "quantize"),
    "surgery.measuring": ("ask", "compare", "evaluate", "load_study"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'surgery' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
