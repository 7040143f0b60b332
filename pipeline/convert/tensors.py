"""A checkpoint's tensors as GGUF's: names, the order of q's and k's rows, norms, types; each checked against config.json."""

from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.convert.config import Config
from pipeline.convert.expected import Expected, Names, expected_tensors, names_of
from pipeline.convert.families import Family
from pipeline.convert.stored_tensor import StoredTensor, to_float32
from pipeline.convert.strange_names import explain_adapter, explain_missing
from pipeline.errors import SurgeryError
from pipeline.gguf_file.encode import encode_rows

# Computed anew by every program that runs the model.
NOT_WEIGHTS = (".rotary_emb.inv_freq", "rope.freqs")
TYPES = {"F32": GGMLQuantizationType.F32, "F16": GGMLQuantizationType.F16, "BF16": GGMLQuantizationType.BF16}


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor of the GGUF file, and how it comes from the checkpoint's `stored` one.

    `permuted_heads`: heads whose rows are put in llama.cpp's order, 0 for none; `offset` is added to all values.
    """

    name: str
    stored: StoredTensor
    type: GGMLQuantizationType
    permuted_heads: int = 0
    offset: float = 0.0

    @property
    def same_bytes(self) -> bool:
        """Whether the file's bytes are the checkpoint's, so that they can be copied."""
        return self.same_values and not self.permuted_heads and self.stored.offset is not None

    @property
    def same_values(self) -> bool:
        return TYPES.get(self.stored.dtype) == self.type and not self.offset

    def encode(self) -> np.ndarray:
        """The bytes of the GGUF tensor: uint8 of shape (rows, ..., bytes per row).

        Raises SurgeryError for NaN and infinity, those included that would come of a type too small for a value.
        """
        self.stored.check_finite()
        data = self.stored.load()
        if not self.same_values:
            values = to_float32(data, self.stored.dtype).reshape(self.stored.shape) + np.float32(self.offset)
            data = encode_rows(self.name, values, self.type)
            self._check_range(data)
        rows = data.reshape(self.stored.shape[0], -1)
        if self.permuted_heads:
            rows = permute(rows, self.permuted_heads)
        return rows.reshape(*self.stored.shape[:-1], -1)

    def _check_range(self, data: np.ndarray) -> None:
        bits = np.ascontiguousarray(data).reshape(-1)
        written = StoredTensor(self.name, self.stored.shape, self.type.name, self.stored.path, None, lambda: bits)
        try:
            written.check_finite()
        except SurgeryError:
            raise SurgeryError(
                f"tensor {self.name} holds values too large for {self.type.name}; use `outtype` f32"
                if self.type != GGMLQuantizationType.F32
                else f"{self.stored.path}: tensor {self.stored.name} holds values too large for F32"
            ) from None


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows (n, anything) of q or k from transformers' RoPE (halves) to llama.cpp's (neighbouring pairs).

    Row h * d + i * d/2 + j of `heads` heads of d rows goes to h * d + 2 * j + i.
    """
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def convert_tensors(
    config: Config, family: Family, weights: dict[str, StoredTensor], kind: GGMLQuantizationType | None
) -> list[ConvertedTensor]:
    """Every tensor of the GGUF file, in order; matrices in type `kind`, or in their own, or F32 for those of F64.

    Raises SurgeryError for a tensor that is missing, unknown, or of another shape than config.json says.
    """
    left = {name: stored for name, stored in weights.items() if not name.endswith(NOT_WEIGHTS)}
    if config.layers > len(left):
        explain_missing(config, left, names_of(family, left).layers)
        raise SurgeryError(f"{config.path}: num_hidden_layers is {config.layers}, but there are {len(left)} tensors")
    names = names_of(family, left)
    embeddings, output = _embeddings(config, family, left, names, kind)
    tensors = [embeddings]
    for expected in expected_tensors(config, family, names):
        stored = left.pop(expected.stored, None)
        if stored is None:
            explain_missing(config, left, names.layers)
            raise SurgeryError(f"{config.path.parent}: the weights lack {expected.stored}; is a shard missing?")
        tensors.append(_converted(family, expected, stored, kind))
    if left:
        explain_adapter(config, left)
        stored = next(iter(left.values()))
        raise SurgeryError(
            f"{stored.path}: tensor {stored.name} is not in a model that config.json describes; get both anew"
        )
    return [*tensors, output] if output else tensors


def _embeddings(
    config: Config, family: Family, left: dict[str, StoredTensor], names: Names, kind: GGMLQuantizationType | None
) -> tuple[ConvertedTensor, ConvertedTensor | None]:
    """The embeddings, and the output matrix unless it is the same: both are taken out of `left`."""
    shape = (config.integer("vocab_size"), config.integer("hidden_size"))
    embeddings = Expected("token_embd.weight", f"{names.embeddings}.weight", shape)
    output = Expected("output.weight", f"{names.head}.weight", shape)
    tied = config.flag("tie_word_embeddings")
    first, last = left.pop(embeddings.stored, None), left.pop(output.stored, None)
    if tied and first is None:
        first, last = last, None  # transformers ties either way
    if first is None:
        explain_missing(config, left, names.layers)
        raise SurgeryError(f"{config.path.parent}: the weights lack {embeddings.stored}; is a shard missing?")
    found = _converted(family, embeddings, first, kind)
    if last is None and not tied:
        raise SurgeryError(
            f"{config.path.parent}: the weights lack {output.stored}, and config.json does not say"
            " tie_word_embeddings; is a shard missing?"
        )
    if last is None or (tied and last.same_as(first)):
        return found, None
    if not family.own_head:
        raise SurgeryError(
            f"{last.path}: tensor {last.name} is not the embeddings; llama.cpp computes {family.architecture} with those"
        )
    return found, _converted(family, output, last, kind)


def own_type(weights: dict[str, StoredTensor]) -> GGMLQuantizationType:
    """The type of the checkpoint's first matrix; config.json's word for it is wrong in some fine-tuned models."""
    matrices = (tensor for tensor in weights.values() if len(tensor.shape) > 1)
    first = next(matrices, None)
    return TYPES.get(first.dtype if first else "F32", GGMLQuantizationType.F32)


def _converted(
    family: Family, expected: Expected, stored: StoredTensor, kind: GGMLQuantizationType | None
) -> ConvertedTensor:
    if stored.shape != expected.shape:
        raise SurgeryError(
            f"{stored.path}: tensor {stored.name} has shape {stored.shape}; by config.json it should be {expected.shape}"
        )
    offset = family.norm_offset if expected.name.endswith("_norm.weight") else 0.0
    if len(stored.shape) < 2:
        kind = GGMLQuantizationType.F32
    elif kind is None:
        kind = TYPES.get(stored.dtype, GGMLQuantizationType.F32)
    return ConvertedTensor(expected.name, stored, kind, expected.permuted_heads, offset)
