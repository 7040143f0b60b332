"""Which matrices o, gate, up and down of a layer are, beside q, k and v: see `pipeline.layer_tensors`."""

from pipeline.architectures import GATE_AND_UP
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.projection import Projection

EXPERTS = "experts, of which each token sees a few"


def output_projection(model: GGUFModel, layer: int) -> dict[str, Projection]:
    """o, which reads what the heads of a layer with attention made; nothing where it is made by several matrices."""
    name = f"blk.{layer}.attn_output.weight"
    return {"o": _whole(model, layer, "o", name)} if name in model.tensors else {}


def feed_forward_projections(model: GGUFModel, layer: int) -> tuple[dict[str, Projection], str]:
    """gate, up and down of a layer's feed-forward block, as far as it has them, and what of it is left alone, if any.

    Where one tensor holds gate and up, its first half is the gate. Raises SurgeryError for shapes that do not fit
    together, and such a tensor of an architecture of which that is not known.
    """
    prefix = f"blk.{layer}.ffn_"
    names = {
        role: f"{prefix}{role}.weight" for role in ("gate", "up", "down") if f"{prefix}{role}.weight" in model.tensors
    }
    experts = any(name.startswith(prefix) and ("exp" in name or name.split(".")[3].isdigit()) for name in model.tensors)
    if names.keys() < {"up", "down"}:
        return {}, EXPERTS if experts else "no feed-forward block"
    found = {role: _whole(model, layer, role, name) for role, name in names.items()}
    gate, up, down = found.get("gate"), found["up"], found["down"]
    if gate is None and up.rows == 2 * down.columns:
        if model.architecture not in GATE_AND_UP:
            raise SurgeryError(
                f"{model.path}: {up.tensor} has twice the rows that {down.tensor} has columns, and what"
                f" {model.architecture} models compute with that is not known to surgery; leave gate, up and down out of `targets`"
            )
        half = down.columns
        parts = {"gate": (0, half), "up": (half, 2 * half)}
        found |= {role: Projection(layer, role, up.tensor, *rows, up.columns) for role, rows in parts.items()}
    elif up.rows != down.columns or (gate and (gate.rows, gate.columns) != (up.rows, up.columns)):
        shapes = {projection.tensor: (projection.rows, projection.columns) for projection in found.values()}
        raise SurgeryError(f"{model.path}: layer {layer}: the shapes {shapes} do not fit together; get the file anew")
    return {role: found[role] for role in ("gate", "up", "down") if role in found}, EXPERTS if experts else ""


def _whole(model: GGUFModel, layer: int, role: str, name: str) -> Projection:
    shape = model.tensors[name].shape
    if len(shape) != 2:
        raise SurgeryError(f"{model.path}: {name} has shape {shape}; it should be a matrix")
    return Projection(layer, role, name, 0, *shape)
