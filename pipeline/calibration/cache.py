"""The user's cache folder: what took long to compute and can be computed again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """SURGERY_CACHE, or `surgery` in XDG_CACHE_HOME, or ~/.cache/surgery; made if it is missing."""
    own = os.environ.get("SURGERY_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else Path(shared or Path.home() / ".cache") / "surgery"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
