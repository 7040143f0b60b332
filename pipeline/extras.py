"""Packages that only some work needs: imported when it comes to it, with the command that installs them."""

import importlib
from types import ModuleType

from pipeline.errors import SurgeryError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, which the extra `extra` installs. Raises SurgeryError with that command when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SurgeryError(
            f"{purpose} needs the package {module}; in Surgery's folder run: make install-{extra}"
            f" (or: pip install -e '.[{extra}]')"
        ) from None
