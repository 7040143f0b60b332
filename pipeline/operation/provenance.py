"""What an operation did, as metadata of the file that it writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import __version__
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry
from pipeline.gguf_file.provenance import PREFIX, earlier_operations
from pipeline.gguf_file.reader import GGUFModel
from pipeline.operation.layer_groups import written_groups
from pipeline.operation.plan import Plan


def operated_metadata(
    model: GGUFModel,
    plan: Plan,
    together: Sequence[tuple[int, ...]],
    ranks: dict[str, list[int]],
    source_hash: str,
    calibration: Mapping[str, Any],
) -> list[MetadataEntry]:
    """The model's metadata with what was done to it; as many bytes before ranks and hash are known as after.

    `together` are the layers, those that share components in one tuple; `ranks` maps a group, such as `q` or `kv`, to
    its rank in each layer, in ascending order, expert by expert; `calibration` says what the model was calibrated on.
    What an earlier operation on the same model left is kept, as JSON, in `surgery.previous`.
    """
    kept = [entry for key, entry in model.metadata.items() if not key.startswith(PREFIX)]
    values = {
        "version": __version__,
        "method": plan.method,
        "targets": plan.targets,
        "mean": plan.mean,
        "metric": plan.metric,
        **({"rank": plan.rank} if plan.rank is not None else {}),
        **{key: float(value) for key in ("threshold", "budget") if (value := getattr(plan, key)) is not None},
        **{f"calibration.{key}": value for key, value in calibration.items()},
        "seed": plan.seed,
        "layers": sorted(number for sharing in together for number in sharing),
        **({"group_layers": written_groups(together)} if plan.group_layers else {}),
        **{f"ranks.{group}": group_ranks for group, group_ranks in ranks.items()},
        "source.name": model.name,
        "source.sha256": source_hash,
        **earlier_operations(model),
    }
    return kept + [metadata_entry(PREFIX + key, value) for key, value in values.items()]
