"""Which matrices o, gate, up and down of a layer are, beside q, k and v: see `pipeline.layer_tensors`.

A layer has a feed-forward block of its own, or experts of which each token is routed to a few, or both, and perhaps a
shared expert that every token goes through.
"""

from collections.abc import Iterable
from dataclasses import replace

from pipeline.architectures import BESIDE_EXPERTS, GATE_AND_UP, WITHOUT_EXPERTS
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.projection import OWN, Block, Projection
from pipeline.targets import FEED_FORWARD

SUFFIXES = {"": "", "shared": "_shexp", "experts": "_exps", "chunks": "_chexps"}
"""How the tensors of each family of blocks are called; those of Grove's `chunks` are experts of experts."""
ROUTED = frozenset({"experts", "chunks"})
"""The families whose tensors have a matrix for each expert."""

Blocks = dict[Block, dict[str, Projection]]


def output_projection(model: GGUFModel, layer: int) -> dict[str, Projection]:
    """o, which reads what the heads of a layer with attention made; nothing where it is made by several matrices."""
    name = f"blk.{layer}.attn_output.weight"
    return {"o": _whole(model, layer, "o", name)} if name in model.tensors else {}


def feed_forward_blocks(model: GGUFModel, layer: int) -> tuple[Blocks, str]:
    """gate, up and down of each of a layer's feed-forward blocks, as far as it has them, and what of them is left alone.

    Where one tensor holds gate and up, its first half is the gate. Raises SurgeryError for shapes that do not fit
    together, and such a tensor of an architecture of which that is not known.
    """
    prefix = f"blk.{layer}.ffn_"
    left = {name for name, info in model.tensors.items() if name.startswith(prefix) and _is_matrix(name, info.shape)}
    blocks: Blocks = {}
    for family, suffix in SUFFIXES.items():
        names = {role: f"{prefix}{role}{suffix}.weight" for role in (*FEED_FORWARD, "gate_up")}
        names = {role: name for role, name in names.items() if name in model.tensors}
        if "gate_up" in names:  # llama.cpp looks no further
            names = {role: names[role] for role in names if role in ("gate_up", "down")}
        if "down" not in names or not names.keys() & {"up", "gate_up"}:
            continue
        found = _block(model, layer, {role: _whole(model, layer, role, names[role], family) for role in names})
        experts = range(model.tensors[names["down"]].shape[0]) if family in ROUTED else [None]
        for block in (Block(family, expert) for expert in experts):
            blocks[block] = {role: replace(projection, block=block) for role, projection in found.items()}
        left -= set(names.values())
    reasons = []
    if left:
        reasons.append(", ".join(sorted(name.removeprefix(f"blk.{layer}.").removesuffix(".weight") for name in left)))
    routed = [block for block in blocks if block.family in ROUTED]
    if routed and model.architecture in WITHOUT_EXPERTS:
        reasons.append(f"experts, with which llama.cpp computes nothing in {model.architecture} models")
        blocks = {block: found for block, found in blocks.items() if block not in routed}
    elif routed and OWN in blocks and model.architecture not in BESIDE_EXPERTS:
        reasons.append("a feed-forward block in the place of which llama.cpp computes the experts")
        del blocks[OWN]
    return blocks, "; ".join(reasons) or ("" if blocks else "no feed-forward block")


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of a feed-forward block's matrices, and not what routes tokens."""
    return name.endswith(".weight") and len(shape) > 1 and ".ffn_gate_inp" not in name


def _block(model: GGUFModel, layer: int, found: dict[str, Projection]) -> dict[str, Projection]:
    """The roles of one block, checked; `gate_up` divided, as llama.cpp's build_moe_ffn does."""
    down = found["down"]
    both = found.pop("gate_up", None)
    if both is None and "gate" not in found and found["up"].rows == 2 * down.columns:
        both = found["up"]
        if model.architecture not in GATE_AND_UP:
            raise SurgeryError(
                f"{model.path}: {both.tensor} has twice the rows that {down.tensor} has columns, and what"
                f" {model.architecture} models compute with that is not known to surgery; leave gate, up and down out of `targets`"
            )
    if both is not None:
        half = down.columns
        if both.rows != 2 * half:
            raise _misfit(model, layer, (both, down))
        parts = {"gate": (0, half), "up": (half, 2 * half)}
        found |= {role: Projection(layer, role, both.tensor, *rows, both.columns) for role, rows in parts.items()}
    up, gate = found["up"], found.get("gate")
    if up.rows != down.columns or (gate and (gate.rows, gate.columns) != (up.rows, up.columns)):
        raise _misfit(model, layer, found.values())
    if len({model.tensors[projection.tensor].shape[:-2] for projection in found.values()}) > 1:
        raise _misfit(model, layer, found.values())
    return {role: found[role] for role in FEED_FORWARD if role in found}


def _misfit(model: GGUFModel, layer: int, found: Iterable[Projection]) -> SurgeryError:
    shapes = {projection.tensor: model.tensors[projection.tensor].shape for projection in found}
    return SurgeryError(f"{model.path}: layer {layer}: the shapes {shapes} do not fit together; get the file anew")


def _whole(model: GGUFModel, layer: int, role: str, name: str, family: str = "") -> Projection:
    shape, axes = model.tensors[name].shape, 3 if family in ROUTED else 2
    if len(shape) != axes:
        expected = "a matrix for each expert" if family in ROUTED else "a matrix"
        raise SurgeryError(f"{model.path}: {name} has shape {shape}; it should be {expected}")
    return Projection(layer, role, name, 0, shape[-2], shape[-1])
