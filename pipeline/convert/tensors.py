"""A checkpoint's tensors as GGUF's: names, the order of q's and k's rows, norms, types; each checked against config.json."""

from dataclasses import dataclass

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, TensorNameMap, get_tensor_name_map

from pipeline.convert.config import Config
from pipeline.convert.families import Family
from pipeline.convert.stored_tensor import StoredTensor, to_float32
from pipeline.errors import SurgeryError
from pipeline.files.encode import encode_rows

# Computed anew by every program that runs the model.
NOT_WEIGHTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
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
        """The bytes of the GGUF tensor: uint8 of shape (rows, ..., bytes per row)."""
        data = self.stored.load()
        if not self.same_values:
            values = to_float32(data, self.stored.dtype).reshape(self.stored.shape) + np.float32(self.offset)
            data = encode_rows(self.name, values, self.type)
        rows = data.reshape(self.stored.shape[0], -1)
        if self.permuted_heads:
            rows = permute(rows, self.permuted_heads)
        return rows.reshape(*self.stored.shape[:-1], -1)


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows (n, anything) of q or k from transformers' RoPE (halves) to llama.cpp's (neighbouring pairs).

    Row h * d + i * d/2 + j of `heads` heads of d rows goes to h * d + 2 * j + i.
    """
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def expected_shapes(config: Config, family: Family) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that the GGUF file of this config may have, in the file's order."""
    hidden, vocabulary = config.integer("hidden_size"), config.integer("vocab_size")
    inner, head = config.integer("intermediate_size"), config.head_dim
    rows, kv_rows = config.heads * head, config.kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, hidden)}
    for layer in range(config.integer("num_hidden_layers")):
        block = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (rows, hidden), "attn_k.weight": (kv_rows, hidden), "attn_v.weight": (kv_rows, hidden),
            "attn_q.bias": (rows,), "attn_k.bias": (kv_rows,), "attn_v.bias": (kv_rows,),
            "attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,),
            "attn_output.weight": (hidden, rows), "attn_output.bias": (hidden,),
            "post_attention_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (inner, hidden), "ffn_gate.bias": (inner,),
            "ffn_up.weight": (inner, hidden), "ffn_up.bias": (inner,),
            "ffn_down.weight": (hidden, inner), "ffn_down.bias": (hidden,),
            "post_ffw_norm.weight": (hidden,),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"output_norm.weight": (hidden,), "output.weight": (vocabulary, hidden)}


def is_required(name: str, family: Family, tied: bool) -> bool:
    """Whether a tensor of `expected_shapes` must be in the checkpoint; biases may be there or not."""
    if name.endswith(".bias"):
        return False
    if name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")):
        return family.qk_norm
    if name.endswith(("post_attention_norm.weight", "post_ffw_norm.weight")):
        return family.post_norms
    return name != "output.weight" or not tied


def convert_tensors(
    config: Config, family: Family, weights: dict[str, StoredTensor], kind: GGMLQuantizationType
) -> list[ConvertedTensor]:
    """Every tensor of the GGUF file, in order; matrices in type `kind`.

    Raises SurgeryError for a tensor that is missing, unknown, or of another shape than config.json says.
    """
    tied = bool(config.get("tie_word_embeddings", family.tied_by_default))
    names = name_map(config, family)
    named = {
        names.get_name(name, try_suffixes=(".weight", ".bias")) or name: stored
        for name, stored in weights.items()
        if not name.endswith(NOT_WEIGHTS)
    }
    if tied:
        named.pop("output.weight", None)  # transformers uses the embeddings, whatever the file holds
    tensors = []
    for name, shape in expected_shapes(config, family).items():
        stored = named.pop(name, None)
        if stored is None:
            if is_required(name, family, tied):
                raise SurgeryError(
                    f"{config.path.parent}: the weights lack {_checkpoint_name(names, name)}; is a shard missing?"
                )
        elif stored.shape != shape:
            raise SurgeryError(
                f"{stored.path}: tensor {stored.name} has shape {stored.shape}; by config.json it should be {shape}"
            )
        else:
            tensors.append(_converted(config, family, name, stored, kind))
    if named:
        stored = next(iter(named.values()))
        raise SurgeryError(
            f"{stored.path}: tensor {stored.name} is not in a model that config.json describes; get both anew"
        )
    return tensors


def own_type(weights: dict[str, StoredTensor]) -> GGMLQuantizationType:
    """The type of the checkpoint's first matrix; config.json's word for it is wrong in some fine-tuned models."""
    matrices = (tensor for tensor in weights.values() if len(tensor.shape) > 1)
    first = next(matrices, None)
    return TYPES.get(first.dtype if first else "F32", GGMLQuantizationType.F32)


def _converted(
    config: Config, family: Family, name: str, stored: StoredTensor, kind: GGMLQuantizationType
) -> ConvertedTensor:
    heads = 0
    if family.permuted and ".attn_q." in name:
        heads = config.heads
    elif family.permuted and ".attn_k." in name:
        heads = config.kv_heads
    offset = family.norm_offset if name.endswith("_norm.weight") else 0.0
    return ConvertedTensor(name, stored, kind if len(stored.shape) > 1 else GGMLQuantizationType.F32, heads, offset)


def name_map(config: Config, family: Family) -> TensorNameMap:
    """The gguf package's map from a checkpoint's tensor names to GGUF's."""
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
    return get_tensor_name_map(architecture, config.integer("num_hidden_layers"))


def _checkpoint_name(names: TensorNameMap, name: str) -> str:
    base, _, suffix = name.rpartition(".")
    known = (key for key, (_, gguf_name) in names.mapping.items() if gguf_name == base)
    return next(
        (f"{key}.{suffix}" for key in known if key.startswith(("model.layers.", "model.embed", "lm_head"))), name
    )
