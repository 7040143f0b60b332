"""What `surgery inspect` prints: a model's summary, its spectrum, the overlap of its subspaces."""

from collections.abc import Sequence
from typing import Any

from pipeline.attention import number_ranges
from pipeline.cli.output import echo, print_table
from pipeline.projection import shown_name
from pipeline.subspaces.similarity import SPECTRUM_THRESHOLDS, mean_of_pairs
from pipeline.visible import visible

MOST_COLUMNS = 4  # groups side by side; of more, each has a line


def print_summary(summary: dict[str, Any]) -> None:
    """What a file is made of; of statistics, which are no model, what there is."""
    for label, key in (
        ("file", "path"),
        ("name", "name"),
        ("architecture", "architecture"),
        ("layers", "layers"),
        ("width", "embedding_length"),
        ("context", "context_length"),
    ):
        if summary[key]:
            echo(f"{label:<14}{visible(str(summary[key]))}")
    if summary["heads"]:
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
    print_projections(summary)
    width = max(map(len, summary["surgery"]), default=0)
    if summary["surgery"]:
        echo()
    for key, value in summary["surgery"].items():
        shown = f"{len(value)} numbers" if isinstance(value, list) and len(value) >= 200 else str(value)
        echo(visible(f"{key:<{width}}  {shown}"))


def print_projections(summary: dict[str, Any]) -> None:
    """What `--targets` may mean in this model, and what is left alone."""
    rows = [
        (
            found["projection"],
            number_ranges(found["layers"]),
            found["matrices"],
            f"{found['rows']} x {found['columns']}",
            min(found["rows"], found["columns"]),
            f"{found['parameters']:,}",
            f"{found['parameters'] / summary['parameters']:.1%}",
        )
        for found in summary["projections"]
    ]
    if rows:
        echo()
        print_table(("projection", "layers", "matrices", "n x d", "full rank", "parameters", "share"), rows)
    for reason, layers in summary["left_alone"].items():
        where = f"layer{'s' if len(layers) > 1 else ''} {number_ranges(layers)}: " if layers else ""
        echo(f"left alone: {where}{visible(reason)}")


def print_spectrum(layers: list[dict[str, Any]]) -> None:
    shares = " ".join(f"{threshold:g}" for threshold in SPECTRUM_THRESHOLDS)
    groups = dict.fromkeys(group for layer in layers for group in layer["ranks"])
    experts = any("expert_ranks" in layer for layer in layers)
    echo(f"\nranks that keep {shares} of the variance{', of experts the mean' if experts else ''}")
    if len(groups) <= MOST_COLUMNS:
        columns = ["layer", *map(shown_name, groups)]
        print_table(
            columns, [(each["layer"], *(_aligned(each["ranks"].get(g, ())) for g in groups)) for each in layers]
        )
        return
    rows = [(each["layer"], shown_name(g), *ranks) for each in layers for g, ranks in each["ranks"].items()]
    print_table(("layer", "group", *(f"{share:g}" for share in SPECTRUM_THRESHOLDS)), rows)


def _aligned(ranks: Sequence[int]) -> str:
    return " ".join(f"{rank:>4}" for rank in ranks)


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
