"""`surgery inspect`: what a model is made of, and how its attention spreads its energy."""

from pathlib import Path
from typing import Any

import click

from pipeline.attention import find_attention
from pipeline.cli.calibrate import obtain_calibration
from pipeline.cli.options import (
    force_option,
    given,
    json_option,
    metric_options,
    model_argument,
    refuse_idle_calibration,
    threads_option,
)
from pipeline.cli.output import ProgressReport, print_json, print_table
from pipeline.errors import UsageError
from pipeline.inspection import summarise
from pipeline.output_file import check_output
from pipeline.report.charts import FORMATS, require_charts, write_chart
from pipeline.sources import open_model
from pipeline.subspaces import (
    SPECTRUM_GROUPS,
    SPECTRUM_THRESHOLDS,
    View,
    compared_layers,
    energies_within,
    mean_of_pairs,
    spectrum,
)


@click.command("inspect")
@model_argument
@click.option(
    "--spectrum", "with_spectrum", is_flag=True, help="Ranks that shares of the variance need, layer by layer."
)
@click.option(
    "--overlap", "with_overlap", is_flag=True, help="What k and v, and k+v of different layers, have in common."
)
@metric_options
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw what --spectrum and --overlap find, as SVG and PNG files in this folder.",
)
@threads_option
@force_option
@json_option
def command(
    model: str,
    with_spectrum: bool,
    with_overlap: bool,
    metric: str,
    calibration: str,
    plots: Path | None,
    threads: int,
    force: bool,
    as_json: bool,
) -> None:
    """Show MODEL's architecture, heads, tensor types and parameter counts, and what its attention reads."""
    if not (with_spectrum or with_overlap):
        for option in ("metric", "calibration", "plots"):
            if given(option):
                raise UsageError(f"--{option}: is for --spectrum and --overlap; add one of them")
    refuse_idle_calibration(metric)
    pictures = planned_pictures(plots, with_spectrum, with_overlap, force=force) if plots else []
    opened = open_model(model)
    summary = summarise(opened)
    if with_spectrum or with_overlap:
        statistics = None if metric == "weights" else obtain_calibration(opened, calibration, metric, threads)
        view = View(opened, find_attention(opened).layers, metric, "keep", statistics)
        summary["metric"] = metric
        summary |= looked_into(view, with_spectrum, with_overlap)
    if plots:
        draw(plots, summary, metric, force=force)
    if as_json:
        print_json(summary)
        return
    print_summary(summary)
    if with_spectrum:
        print_spectrum(summary["spectrum"])
    if with_overlap:
        print_overlap(summary["overlap"])
    for picture in pictures:
        click.echo(f"drew {picture}")


def looked_into(view: View, with_spectrum: bool, with_overlap: bool) -> dict[str, Any]:
    """What is printed as JSON of spectrum and overlap, with progress."""
    found: dict[str, Any] = {}
    if with_spectrum:
        with ProgressReport("decomposing", unit="layers", total=len(view.layers)) as report:
            found |= {"spectrum_thresholds": SPECTRUM_THRESHOLDS, "spectrum": []}
            for number in view.layers:
                found["spectrum"].append(spectrum(view, number))
                report.advance(1)
    if with_overlap:
        with ProgressReport("comparing", unit="layers", total=len(view.layers) + 1) as report:
            within = []
            for number in view.layers:
                within.append(energies_within(view, number))
                report.advance(1)
            found["overlap"] = {"within": within, "between": compared_layers(view)}
            report.advance(1)
    return found


def planned_pictures(folder: Path, with_spectrum: bool, with_overlap: bool, *, force: bool) -> list[Path]:
    """The files that `draw` will write. Raises before anything takes long if they cannot be written or drawn."""
    require_charts()
    folder.mkdir(parents=True, exist_ok=True)
    names = ["spectrum"] * with_spectrum + ["overlap-k-v", "overlap-layers"] * with_overlap
    pictures = [folder / f"{name}.{kind}" for name in names for kind in FORMATS]
    for picture in pictures:
        check_output(picture, force=force)
    return pictures


def draw(folder: Path, summary: dict[str, Any], metric: str, *, force: bool) -> None:
    from pipeline.report.subspace_charts import overlap_chart, spectrum_chart, within_chart

    charts: dict[str, Any] = {}
    if "spectrum" in summary:
        charts["spectrum"] = spectrum_chart(summary["spectrum"], metric)
    if "overlap" in summary:
        between = summary["overlap"]["between"]
        charts["overlap-k-v"] = within_chart(summary["overlap"]["within"], between["columns"], metric)
        charts["overlap-layers"] = overlap_chart(between, metric)
    for name, chart in charts.items():
        for kind in FORMATS:
            write_chart(chart, folder / f"{name}.{kind}", force=force)


def print_summary(summary: dict[str, Any]) -> None:
    for label, key in (
        ("file", "path"),
        ("name", "name"),
        ("architecture", "architecture"),
        ("layers", "layers"),
        ("width", "embedding_length"),
        ("context", "context_length"),
    ):
        click.echo(f"{label:<14}{summary[key]}")
    click.echo(f"{'heads':<14}{summary['heads']} query, {summary['kv_heads']} key/value")
    click.echo(f"{'size':<14}{summary['file_bytes'] / 1e6:,.1f} MB, {summary['parameters']:,} parameters\n")
    print_table(
        ("type", "tensors", "MB"),
        [(name, t["tensors"], f"{t['bytes'] / 1e6:,.1f}") for name, t in summary["types"].items()],
    )
    click.echo()
    total = summary["parameters"]
    print_table(
        ("tensor", "parameters", "share"),
        [(kind, f"{count:,}", f"{count / total:.1%}") for kind, count in summary["parameters_by_kind"].items()],
    )
    for key, value in summary["surgery"].items():
        click.echo(f"{key:<24}{value if not isinstance(value, list) or len(value) < 200 else f'{len(value)} numbers'}")


def print_spectrum(layers: list[dict[str, Any]]) -> None:
    shares = " ".join(f"{threshold:g}" for threshold in SPECTRUM_THRESHOLDS)
    click.echo(f"\nranks that keep {shares} of the variance")
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
    click.echo(
        f"\nshare of the energy in the first {' '.join(map(str, shown))} directions of the other, of random weights"
    )
    rows = [
        (layer["layer"], *(" ".join(f"{layer[key][rank - 1]:.3f}" for rank in shown) for key in columns))
        for layer in within
    ]
    print_table(("layer", "v in k", "v in random", "k in v", "k in random"), rows)
    click.echo("\noverlap of the subspaces that k+v of two layers read")
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
