"""The user's cache folder: what took long to compute and can be computed again."""

import os
from pathlib import Path

from pipeline.errors import SurgeryError


def cache_folder() -> Path:
    """SURGERY_CACHE, or `surgery` in XDG_CACHE_HOME, or ~/.cache/surgery; made if it is missing.

    Raises SurgeryError when it cannot be made.
    """
    own = os.environ.get("SURGERY_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or Path.home() / ".cache") / "surgery"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurgeryError(
            f"{folder}: the cache folder cannot be made: {error.strerror}; set SURGERY_CACHE to a folder of yours"
        ) from None
    return folder
