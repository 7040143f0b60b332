"""`surgery inspect`: what a model is made of, and how its attention spreads its energy."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from pipeline.attention import find_attention
from pipeline.choices import choices_of
from pipeline.cli.calibrate import calibration_for_metric
from pipeline.cli.choices import choice_type, metric_options
from pipeline.cli.damage import damage, print_damage
from pipeline.cli.inspection_tables import print_overlap, print_spectrum, print_summary
from pipeline.cli.options import (
    force_option,
    given,
    json_option,
    model_argument,
    refuse_idle,
    refuse_idle_calibration,
    threads_option,
)
from pipeline.cli.output import echo, print_json
from pipeline.cli.parameters import WholeNumber
from pipeline.cli.pictures import draw, planned_pictures
from pipeline.cli.progress_report import ProgressReport
from pipeline.cli.sections import SurgeryCommand
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.models import resolve_model
from pipeline.inputs.texts import EVALUATION_TEXT
from pipeline.inspection import summarise
from pipeline.layers import AttentionLayers
from pipeline.operation.groups import plan_groups
from pipeline.operation.plan import DEFAULT_THRESHOLD, Plan
from pipeline.subspaces.outline import overlap_outline, spectrum_outline
from pipeline.subspaces.similarity import SPECTRUM_THRESHOLDS, Lens, overlap, spectra
from pipeline.targets import settled_targets, target_roles


@click.command(
    "inspect",
    cls=SurgeryCommand,
    sections={
        "What is shown": "with_spectrum with_overlap with_damage targets plots",
        "Measuring damage": "threshold text chunks study",
        "Calibration": "metric calibration",
    },
)
@model_argument
@click.option(
    "--spectrum", "with_spectrum", is_flag=True, help="Ranks that shares of the variance need, layer by layer."
)
@click.option(
    "--targets",
    default="qkv",
    show_default=True,
    help="What --spectrum is of, as operate has it: such as all, or gate,up,down.",
)
@click.option(
    "--overlap", "with_overlap", is_flag=True, help="What k and v, and k+v of different layers, have in common."
)
@click.option(
    "--damage",
    "with_damage",
    is_flag=True,
    help="KL divergence with each of q, k and v of each layer operated on alone; takes minutes, and can be resumed.",
)
@click.option(
    "--threshold",
    default=DEFAULT_THRESHOLD,
    show_default=True,
    type=choice_type(choices_of(Plan)["threshold"][0]),
    help="Share of the variance that --damage keeps.",
)
@click.option("--text", default=EVALUATION_TEXT, show_default=True, help="The text that --damage measures on.")
@click.option("--chunks", default=4, show_default=True, type=WholeNumber(2), help="Its chunks of 512 tokens.")
@click.option(
    "--study", type=click.Path(path_type=Path), help="Folder of what --damage measured.  [default: in the cache]"
)
@metric_options
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw what --spectrum, --overlap and --damage find, as SVG and PNG files in this folder.",
)
@threads_option
@force_option
@json_option
def command(
    model: str,
    with_spectrum: bool,
    with_overlap: bool,
    with_damage: bool,
    targets: str,
    threshold: float,
    text: str,
    chunks: int,
    study: Path | None,
    metric: str,
    calibration: str,
    plots: Path | None,
    threads: int,
    force: bool,
    as_json: bool,
) -> None:
    """Show MODEL's architecture, heads, tensor types, parameter counts and projections, and what its layers read."""
    refuse_idle_options(with_spectrum, with_overlap, with_damage)
    roles = target_roles(targets)
    refuse_idle_calibration(metric)
    wanted = {"spectrum": with_spectrum, "overlap-k-v": with_overlap, "overlap-layers": with_overlap}
    names = [name for name, drawn in {**wanted, "damage": with_damage}.items() if drawn]
    pictures = planned_pictures(plots, names, force=force) if plots else []
    opened = open_gguf(resolve_model(model))  # anything that is GGUF
    summary = summarise(opened)
    if with_spectrum or with_overlap:
        if with_overlap:
            find_attention(opened).require_plain(opened, "--overlap")
        if with_spectrum:
            plan_groups(layers := AttentionLayers(opened, roles=roles), [tuple(layers)], Plan(targets=targets))
        statistics = calibration_for_metric(opened, calibration, metric, threads, roles)
        lens = Lens(AttentionLayers(opened, statistics, roles), metric, "keep")
        summary["metric"] = metric
        summary |= looked_into(lens, roles, with_spectrum, with_overlap)
    if with_damage:
        summary["damage"] = damage(
            opened, threshold=threshold, metric=metric, calibration=calibration, text=text, chunks=chunks,
            threads=threads, folder=study,
        )  # fmt: skip
    if plots:
        draw(charts_of(summary, metric), plots, force=force)
    if as_json:
        print_json(summary)
        return
    print_summary(summary)
    if with_spectrum:
        print_spectrum(summary["spectrum"])
    if with_overlap:
        print_overlap(summary["overlap"])
    if with_damage:
        print_damage(summary["damage"])
    for picture in pictures:
        echo(f"drew {picture}")


def looked_into(lens: Lens, roles: Collection[str], with_spectrum: bool, with_overlap: bool) -> dict[str, Any]:
    """What is printed as JSON of spectrum and overlap, with progress."""
    found: dict[str, Any] = {}
    if with_spectrum:
        with ProgressReport("decomposing", unit="layers", total=len(lens.layers)) as report:
            found["targets"] = settled_targets("+".join(roles))
            found["spectrum_thresholds"] = SPECTRUM_THRESHOLDS
            found["spectrum"] = spectra(lens, lambda doing: report.advance(1), roles)
    if with_overlap:
        with ProgressReport("comparing", unit="layers", total=len(lens.layers) + 1) as report:
            found["overlap"] = overlap(lens, lambda doing: report.advance(1))
    return found


def refuse_idle_options(with_spectrum: bool, with_overlap: bool, with_damage: bool) -> None:
    """Raise UsageError for an option that nothing asked for would use."""
    if not with_damage:
        refuse_idle(("threshold", "text", "chunks", "study"), "is for --damage; add it")
    if not (with_spectrum or with_overlap or with_damage):
        refuse_idle(
            ("metric", "calibration", "plots", "threads"), "is for --spectrum, --overlap and --damage; add one of them"
        )
    if not with_spectrum:
        refuse_idle(["targets"], "is for --spectrum; add it")
    if not given("plots"):
        refuse_idle(["force"], "is for --plots; add it")


def charts_of(summary: dict[str, Any], metric: str) -> dict[str, Any]:
    from pipeline.report.damage_chart import damage_chart
    from pipeline.report.subspace_charts import overlap_chart, spectrum_chart, within_chart

    charts: dict[str, Any] = {}
    if "spectrum" in summary:
        charts["spectrum"] = spectrum_chart(spectrum_outline(summary["spectrum"]), metric)
    if "overlap" in summary:
        outline = overlap_outline(summary["overlap"])
        charts["overlap-k-v"] = within_chart(outline["within"], metric)
        charts["overlap-layers"] = overlap_chart(outline["between"], metric)
    if "damage" in summary:
        charts["damage"] = damage_chart(summary["damage"], metric)
    return charts
