"""What `surgery inspect` prints: a model's summary, its spectrum, the overlap of its subspaces."""

from typing import Any

from pipeline.cli.output import echo, print_table
from pipeline.subspaces.similarity import SPECTRUM_GROUPS, SPECTRUM_THRESHOLDS, mean_of_pairs
from pipeline.visible import visible


def print_summary(summary: dict[str, Any]) -> None:
    for label, key in (
        ("file", "path"),
        ("name", "name"),
        ("architecture", "architecture"),
        ("layers", "layers"),
        ("width", "embedding_length"),
        ("context", "context_length"),
    ):
        echo(f"{label:<14}{visible(str(summary[key]))}")
    echo(f"{'heads':<14}{summary['heads']} query, {summary['kv_heads']} key/value")
    echo(f"{'size':<14}{summary['file_bytes'] / 1e6:,.1f} MB, {summary['parameters']:,} parameters\n")
    print_table(
        ("type", "tensors", "MB"),
        [(name, t["tensors"], f"{t['bytes'] / 1e6:,.1f}") for name, t in summary["types"].items()],
    )
    echo()
    total = summary["parameters"]
    print_table(
        ("tensor", "parameters", "share"),
        [(kind, f"{count:,}", f"{count / total:.1%}") for kind, count in summary["parameters_by_kind"].items()],
    )
    for key, value in summary["surgery"].items():
        shown = f"{len(value)} numbers" if isinstance(value, list) and len(value) >= 200 else str(value)
        echo(visible(f"{key:<24}{shown}"))


def print_spectrum(layers: list[dict[str, Any]]) -> None:
    shares = " ".join(f"{threshold:g}" for threshold in SPECTRUM_THRESHOLDS)
    echo(f"\nranks that keep {shares} of the variance")
    rows = [
        (layer["layer"], *(" ".join(f"{rank:>4}" for rank in layer["ranks"][group]) for group in SPECTRUM_GROUPS))
        for layer in layers
    ]
    print_table(["layer", *map("+".join, SPECTRUM_GROUPS)], rows)


def print_overlap(overlap: dict[str, Any]) -> None:
    """Shares within a layer and means over pairs of layers, at the ranks at which layers are compared."""
    within, between = overlap["within"], overlap["between"]
    shown = [rank for rank in between["ranks"] if rank <= len(within[0]["v_in_k"])]
    columns = ("v_in_k", "v_in_random", "k_in_v", "k_in_random")
    echo(f"\nshare of the energy in the first {' '.join(map(str, shown))} directions of the other, of random weights")
    rows = [
        (layer["layer"], *(" ".join(f"{layer[key][rank - 1]:.3f}" for rank in shown) for key in columns))
        for layer in within
    ]
    print_table(("layer", "v in k", "v in random", "k in v", "k in random"), rows)
    echo("\noverlap of the subspaces that k+v of two layers read")
    compared = zip(between["ranks"], between["overlap"], between["random_weights"], between["random"], strict=True)
    rows = [
        (
            rank,
            *(f"{mean_of_pairs(m, distance):.3f}" for distance in (1, None) for m in (own, weights)),
            f"{subspaces:.3f}",
        )
        for rank, own, weights, subspaces in compared
    ]
    headings = ("neighbours", "with random weights", "all pairs", "with random weights", "random subspaces")
    print_table(("rank", *headings), rows)
