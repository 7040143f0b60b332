"""A checkpoint folder, seen as the GGUF model that it becomes: everything that works on a GGUFModel works on it."""

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.convert.config import Config, read_config
from pipeline.convert.families import find_family
from pipeline.convert.hyperparameters import general_metadata, hyperparameters
from pipeline.convert.rope import llama3_factors, read_rope
from pipeline.convert.settings import check_settings
from pipeline.convert.stored_tensor import StoredTensor
from pipeline.convert.strange_names import MERGE
from pipeline.convert.tensors import ConvertedTensor, convert_tensors, own_type
from pipeline.convert.text_part import text_config, text_weights
from pipeline.convert.tokenizer import tokenizer_metadata
from pipeline.convert.weights import INDEX_FILES, READERS, SINGLE_FILES, SMALL_FILES, find_weights, read_weights
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.metadata import MetadataEntry
from pipeline.gguf_file.reader import DEFAULT_ALIGNMENT, GGUFModel, TensorInfo

OUTTYPES = ("auto", "f32", "f16", "bf16")
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Checkpoint(GGUFModel):
    """A checkpoint as a GGUF model. `paths` are its files, the weights first; `label` is what it is called by.

    `tensors` describes what the GGUF file will hold; a tensor is read, and converted, when it is asked for.
    """

    label: str
    folder: Path
    converted: dict[str, ConvertedTensor] = field(repr=False)
    notes: tuple[str, ...] = ()  # what whoever converts it should know

    @property
    def name(self) -> str:
        return self.label

    def read_raw(self, name: str, matrix: int | None = None) -> np.ndarray:
        """The bytes of the GGUF tensor, or of one of its matrices: uint8, of shape (rows, bytes per row)."""
        data = self.converted[name].encode()
        return data if matrix is None else data[matrix]

    def stored(self, name: str) -> TensorInfo | None:
        """Where the checkpoint has the very bytes of the GGUF tensor; None where they are converted.

        Raises SurgeryError when they hold NaN or infinity: whoever asks is about to copy them.
        """
        tensor = self.converted[name]
        if not tensor.same_bytes or tensor.stored.offset is None:
            return None
        tensor.stored.check_finite()
        return replace(self.tensors[name], offset=tensor.stored.offset)


def open_checkpoint(
    folder: Path, *, label: str = "", repository: str | None = None, outtype: str = "auto", pre: str | None = None
) -> Checkpoint:
    """Open a checkpoint folder: config.json, weights and tokenizer, all checked against each other.

    `outtype`: the type of the matrices, `auto` for each one's own; norms and biases become F32. `pre` overrides
    the name of the pre-tokenizer. Raises UsageError when the folder is no checkpoint, SurgeryError when the checkpoint
    is incomplete, contradicts itself or is of a family that cannot be converted.
    """
    paths = _check_folder(folder)
    config = read_config(folder)
    text = text_config(config)
    pictures, config = text is not config, text
    config, family = find_family(config)
    check_settings(config, family)
    weights = read_weights(folder, paths)
    if pictures:
        weights = text_weights(weights)
    kind = own_type(weights) if outtype == "auto" else GGMLQuantizationType[outtype.upper()]
    rope = read_rope(config, family)
    tensors = convert_tensors(config, family, weights, None if outtype == "auto" else kind)
    if rope.kind == "llama3":
        tensors.insert(0, _rope_freqs(config, llama3_factors(config, rope)))
    label = label or folder.resolve().name
    name = (repository or label).rpartition("/")[2]
    parameters = sum(prod(tensor.stored.shape) for tensor in tensors)
    metadata = [
        *general_metadata(family, name, repository, kind, parameters),
        *hyperparameters(config, family, rope),
        *_tokenizer(folder, config, pre, name),
    ]
    return Checkpoint(
        (*paths, *(folder / name for name in SMALL_FILES if (folder / name).is_file())),
        DEFAULT_ALIGNMENT,
        {entry.key: entry for entry in metadata},
        {t.name: TensorInfo(t.name, t.stored.shape, t.type, t.stored.path, 0) for t in tensors},
        label=label,
        folder=folder,
        converted={tensor.name: tensor for tensor in tensors},
        notes=(f"{folder}: only the text part is converted, without pictures",) if pictures else (),
    )


def _tokenizer(folder: Path, config: Config, pre: str | None, name: str) -> list[MetadataEntry]:
    try:
        return list(tokenizer_metadata(folder, config.integer("vocab_size"), pre, config.values, name))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        # Four files of many versions by several programs: which of them is wrong is not known here.
        raise SurgeryError(
            f"{folder}: the tokenizer's files are not as expected ({type(error).__name__}: {error}); get them anew"
        ) from None


def _check_folder(folder: Path) -> list[Path]:
    """The weights' files. Raises UsageError or SurgeryError unless the folder holds config.json and weights."""
    has_config, paths = (folder / "config.json").is_file(), find_weights(folder)
    if has_config and paths:
        return paths
    if (folder / "adapter_config.json").is_file() and not paths:
        raise SurgeryError(f"{folder}: is an adapter, as adapter_config.json says, not a whole model; {MERGE}")
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not paths:
        raise UsageError(f"{folder}: is a folder of GGUF files; name one of them, such as {ggufs[0]}")
    if shards := sorted(path for suffix in READERS for path in folder.glob(f"*-of-*{suffix}")):
        index = next(name for name in INDEX_FILES if shards[0].suffix in name)
        raise SurgeryError(f"{folder}: has shards, such as {shards[0].name}, but not their index; get {index}, too")
    if has_config:
        expected = ", ".join((*SINGLE_FILES, *INDEX_FILES))
        raise SurgeryError(f"{folder}: has config.json but no weights; expected one of {expected}")
    if paths:
        raise SurgeryError(f"{folder}: has weights ({paths[0].name}) but no config.json; get that file, too")
    raise UsageError(
        f"{folder}: is a folder without a checkpoint in it; expected config.json, {SINGLE_FILES[0]} and a tokenizer"
    )


def _rope_freqs(config: Config, factors: np.ndarray) -> ConvertedTensor:
    stored = StoredTensor(ROPE_FREQS, factors.shape, "F32", config.path, None, lambda: factors.view(np.uint8))
    return ConvertedTensor(ROPE_FREQS, stored, GGMLQuantizationType.F32)
