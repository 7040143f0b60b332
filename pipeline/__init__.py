"""Surgery: low-rank reconstruction of a transformer's attention projections, and what it costs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("surgery")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
