"""What q, k and v of one layer are made by, decided by the layer's own tensors and head counts."""

import re
from collections.abc import Callable

from pipeline.architectures import (
    BESIDE_A_STATE_SPACE,
    FUSED,
    GATED,
    LATENT,
    SINGLE_KEY_VALUE,
    computes_own_keys,
    has_linear_attention,
    of_layer,
)
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.projection import ROLES, Projection

UNCOMPUTED = "a prediction layer, which llama.cpp does not compute"
STATES = re.compile(r"ssm_|shortconv\.|time_mix_")  # tensors of state spaces, convolutions and RWKV


def layer_projections(model: GGUFModel, layer: int, count: int) -> dict[str, Projection] | str:
    """The projections of a layer, or why it is left alone."""
    prefix = f"blk.{layer}."
    names = {name.removeprefix(prefix) for name in model.tensors if name.startswith(prefix)}
    if not names & {"attn_q.weight", "attn_qkv.weight", "attn_q_a.weight"}:
        return "no attention"
    unused = model.hyperparameter("nextn_predict_layers", 0)
    if isinstance(unused, int) and layer >= count - unused:
        return UNCOMPUTED
    if has_linear_attention(model, layer):
        return "linear attention"
    if model.architecture not in BESIDE_A_STATE_SPACE and (state := next(filter(STATES.match, sorted(names)), None)):
        raise _unknown(model, layer, f"{prefix}{state} beside q, k and v")
    if "attn_kv_a_mqa.weight" in names:
        return _latent(model, layer, names)
    if "attn_kv.weight" in names:
        return _single_key_value(model, layer, names)
    found = _fused(model, layer) if "attn_qkv.weight" in names else _separate(model, layer, names)
    if isinstance(found, dict) and not computes_own_keys(model, layer, count):
        return {"q": found["q"]}
    return found


def _unknown(model: GGUFModel, layer: int, found: str) -> SurgeryError:
    return SurgeryError(
        f"{model.path}: layer {layer} has {found}, and what {model.architecture or 'unnamed'} models compute with that"
        " is not known to surgery"
    )


def _separate(model: GGUFModel, layer: int, names: set[str]) -> dict[str, Projection] | str:
    tensors = {role: f"blk.{layer}.attn_{role}.weight" for role in ROLES if f"attn_{role}.weight" in names}
    if model.architecture == "gemma4" and "k" in tensors and "v" not in tensors:  # v is k there, before norm and RoPE
        tensors["kv_a"] = tensors.pop("k")
    elif len(tensors) < len(ROLES) and computes_own_keys(model, layer, model.hyperparameter("block_count")):
        return "no attention" if tensors.keys() != {"q"} else "q, but neither k nor v"
    shapes = {role: model.tensors[name].shape for role, name in tensors.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) != 1:
        raise SurgeryError(
            f"{model.path}: layer {layer}: q, k and v have shapes {shapes}; they should be matrices of equal width"
        )
    projections = {role: Projection(layer, role, tensors[role], 0, rows, d) for role, (rows, d) in shapes.items()}
    _check_shapes(model, layer, projections)
    if model.architecture in GATED:
        projections["q"] = _without_gate(model, projections["q"])
    return projections


def _without_gate(model: GGUFModel, q: Projection) -> Projection:
    """The query's rows of a tensor that holds, head by head, those and as many of a gate."""
    heads = of_layer(model.hyperparameter("attention.head_count", 0), q.layer)
    if not heads or q.rows % (2 * heads):
        raise _contradiction(model, "attention.head_count", heads, f"{q.tensor} has {q.rows} rows of queries and gates")
    size = q.rows // heads // 2
    return Projection(q.layer, "q", q.tensor, q.start, q.stop, q.columns, every=(size, 2 * size))


def _fused(model: GGUFModel, layer: int) -> dict[str, Projection]:
    name = f"blk.{layer}.attn_qkv.weight"
    if model.architecture not in FUSED:
        raise _unknown(model, layer, name)
    shape = model.tensors[name].shape
    heads = of_layer(model.hyperparameter("attention.head_count", 0), layer)
    heads_kv = of_layer(model.hyperparameter("attention.head_count_kv", heads), layer)
    width = of_layer(model.hyperparameter("embedding_length", 0), layer)
    usual = width // heads if heads else 0
    gate = 2 if model.architecture in GATED else 1
    sizes = [
        (
            model.hyperparameter(f"attention.key_length{swa}", usual),
            model.hyperparameter(f"attention.value_length{swa}", usual),
        )
        for swa in ("", "_swa")
    ]  # layers with a sliding window may have heads of another size
    splits = {(gate * heads * k, heads_kv * k, heads_kv * v) for k, v in sizes}
    fitting = [split for split in splits if len(shape) == 2 and sum(split) == shape[0] and 0 not in split]
    if len(fitting) != 1:
        (key_length, value_length), made = (
            sizes[0],
            (gate * heads * sizes[0][0], heads_kv * sizes[0][0], heads_kv * sizes[0][1]),
        )
        raise SurgeryError(
            f"{model.path}: {name} has shape {shape}, but {heads} query and {heads_kv} key/value heads of"
            f" {key_length} and {value_length} make {' + '.join(map(str, made))} rows"
        )
    projections, start = {}, 0
    for role, height in zip(ROLES, fitting[0], strict=True):
        projections[role] = Projection(layer, role, name, start, start + height, shape[1])
        start += height
    _check_shapes(model, layer, projections)
    if model.architecture in GATED:
        projections["q"] = _without_gate(model, projections["q"])
    return projections


def _latent(model: GGUFModel, layer: int, names: set[str]) -> dict[str, Projection]:
    """Of latent attention: q, or q_a and q_b; kv_a, whose last rows are k's rotated part; k_b and v_b, which read the latent.

    Where llama.cpp absorbs k_b into the query, it is stored as (heads, latent, n), else with v_b in one tensor.
    """
    if model.architecture not in LATENT:
        raise _unknown(model, layer, f"blk.{layer}.attn_kv_a_mqa.weight")

    def whole(role: str, name: str, *, transposed: bool = False) -> Projection:
        tensor = f"blk.{layer}.{name}.weight"
        *batch, rows, columns = model.tensors[tensor].shape
        if transposed:
            rows, columns = columns, rows
        if len(batch) > 1:
            raise SurgeryError(f"{model.path}: {tensor} has {len(batch) + 2} axes; at most 3 were expected")
        return Projection(layer, role, tensor, 0, rows * (batch or [1])[0], columns, transposed=transposed)

    found = _queries(model, layer, names, whole)
    found["kv_a"] = whole("kv_a", "attn_kv_a_mqa")
    absorbed = {"attn_k_b.weight", "attn_v_b.weight"} <= names
    if "attn_kv_b.weight" in names and not (absorbed and model.hyperparameter("attention.key_length_mla")):
        found |= _keys_and_values(model, whole("kv_a", "attn_kv_b"))
    elif absorbed:
        found["k_b"] = whole("k_b", "attn_k_b", transposed=True)
        found["v_b"] = whole("v_b", "attn_v_b")
    else:
        raise _unknown(model, layer, "attn_kv_a_mqa, but neither attn_kv_b nor attn_k_b and attn_v_b,")
    if any(found[role].columns != found["v_b"].columns for role in found if role == "k_b") or (
        found["v_b"].columns > found["kv_a"].rows
    ):
        shapes = {p.tensor: model.tensors[p.tensor].shape for p in found.values()}
        raise SurgeryError(f"{model.path}: layer {layer}: the shapes {shapes} do not fit together")
    return found


def _queries(
    model: GGUFModel, layer: int, names: set[str], whole: Callable[[str, str], Projection]
) -> dict[str, Projection]:
    if "attn_q.weight" in names:
        return {"q": whole("q", "attn_q")}
    if "attn_q_b.weight" not in names:
        raise _unknown(model, layer, "attn_q_a.weight, but no attn_q_b.weight,")
    return {"q_a": whole("q_a", "attn_q_a"), "q_b": whole("q_b", "attn_q_b")}


def _keys_and_values(model: GGUFModel, both: Projection) -> dict[str, Projection]:
    """k_b and v_b in one tensor: head by head the rows of k, then those of v."""
    heads = of_layer(model.hyperparameter("attention.head_count", 0), both.layer)
    value = model.hyperparameter("attention.value_length_mla") or model.hyperparameter("attention.value_length", 0)
    period = both.rows // heads if heads else 0
    if not heads or both.rows % heads or not 0 < value <= period:
        raise _contradiction(
            model, "attention.head_count", heads, f"{both.tensor} has {both.rows} rows for heads whose v has {value}"
        )
    return {
        role: Projection(both.layer, role, both.tensor, start, both.stop, both.columns, every=(size, period))
        for role, start, size in (("k_b", 0, period - value), ("v_b", period - value, value))
        if size  # all of k may be the part that RoPE turns
    }


def _single_key_value(model: GGUFModel, layer: int, names: set[str]) -> dict[str, Projection]:
    """One head that is k and v at once, and q made of a latent."""
    if model.architecture not in SINGLE_KEY_VALUE:
        raise _unknown(model, layer, f"blk.{layer}.attn_kv.weight")

    def whole(role: str, name: str) -> Projection:
        tensor = f"blk.{layer}.{name}.weight"
        rows, columns = model.tensors[tensor].shape
        return Projection(layer, role, tensor, 0, rows, columns)

    return {**_queries(model, layer, names, whole), "kv_a": whole("kv_a", "attn_kv")}


def _check_shapes(model: GGUFModel, layer: int, projections: dict[str, Projection]) -> None:
    """Raise SurgeryError where the metadata contradicts q, k and v: llama.cpp would not load what is made of them.

    A key that the model lacks says nothing. A head's size is not looked up, as architectures have several keys for it.
    """
    q = projections["q"]
    width = of_layer(model.hyperparameter("embedding_length", q.columns), layer)
    if width != q.columns:
        raise _contradiction(model, "embedding_length", width, f"{q.tensor} has {q.columns} columns")
    sizes = {}
    for key, roles in (("attention.head_count", "q"), ("attention.head_count_kv", "kv")):
        heads = of_layer(model.hyperparameter(key, 1), layer)
        for projection in (projections[role] for role in roles if role in projections):
            if not isinstance(heads, int) or heads < 1 or projection.rows % heads or not projection.rows:
                found = f"{projection.role} in {projection.tensor} has {projection.rows} rows to divide among the heads"
                raise _contradiction(model, key, heads, found)
            if model.hyperparameter(key) is not None:
                sizes[projection.role] = projection.rows // heads
    if {"q", "k"} <= sizes.keys() and sizes["q"] % sizes["k"]:  # a q with a gate beside it has twice the rows
        heads = of_layer(model.hyperparameter("attention.head_count"), layer)
        found = f"in layer {layer} q would then have {sizes['q']} features a head, and k has {sizes['k']}"
        raise _contradiction(model, "attention.head_count", heads, found)


def _contradiction(model: GGUFModel, key: str, value: object, found: str) -> SurgeryError:
    return SurgeryError(
        f"{model.path}: {model.architecture}.{key} is {value}, but {found}; one of them is wrong, get the file anew"
    )
