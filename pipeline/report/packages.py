"""What a report needs beyond the rest of the program."""

from importlib.util import find_spec

from pipeline.errors import SurgeryError

PACKAGES = ("altair", "jinja2", "vl_convert")


def require_packages() -> None:
    """Raise SurgeryError, with the command that installs them, when the packages of the extra `report` are missing."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise SurgeryError(f"a report needs {' and '.join(missing)}; run: pip install 'surgery[report]'")
