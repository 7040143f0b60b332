"""`surgery latent`: a model whose KV cache is smaller, for an unmodified llama.cpp."""

import shlex
from pathlib import Path

import click

from pipeline.calibration.obtain import obtain_calibration
from pipeline.cli.calibrate import calibration_progress
from pipeline.cli.options import (
    calibration_option,
    force_option,
    json_option,
    model_argument,
    output_option,
    threads_option,
)
from pipeline.cli.output import ProgressReport, echo, print_json, print_table, warn
from pipeline.cli.parameters import Choice
from pipeline.files.models import open_model
from pipeline.files.output_file import check_output
from pipeline.latent.convert import LatentReport, convert_to_latent
from pipeline.latent.plan import OUTTYPES, LatentPlan, choose_layout
from pipeline.latent.source import require_convertible
from pipeline.program import program


@click.command("latent")
@model_argument
@output_option
@click.option(
    "--cache",
    default=0.5,
    show_default=True,
    help="What to cache: a share of the source's numbers, 0 < S <= 1, rounded down to a multiple of 32 of them; above 1, how"
    " many per token and layer.",
)
@click.option("--rotary", type=int, help="How many of them keep RoPE.  [default: as many as a head has, at most half]")
@calibration_option(
    "A text to calibrate on, like what the model is to read, or statistics that surgery calibrate made of one."
)
@click.option(
    "--outtype",
    default="auto",
    show_default=True,
    type=Choice(OUTTYPES),
    help="Type of the new matrices. auto: the source's if it is a float type, else F16. All others keep theirs.",
)
@threads_option
@force_option
@json_option
def command(
    model: str,
    output: Path,
    cache: float,
    rotary: int | None,
    calibration: str,
    outtype: str,
    threads: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write OUTPUT: MODEL, a Llama, with keys and values cached as one small latent (multi-head latent attention).

    Any llama.cpp that knows DeepSeek's architecture runs it. Nothing is trained.
    """
    plan = LatentPlan(cache=cache, rotary=rotary, outtype=outtype)
    source = open_model(model)
    choose_layout(plan, require_convertible(source))  # before anything takes long
    check_output(output, force=force, sources=source.paths)
    with calibration_progress(source, calibration) as watch:
        statistics = obtain_calibration(source, calibration, threads=threads, watch=watch)
    with ProgressReport("sampling", unit="chunks") as sampling, ProgressReport("converting", unit="layers") as report:
        result = convert_to_latent(
            source, output, plan, statistics, threads=threads, force=force,
            sampling=sampling.update, progress=report.update,
        )  # fmt: skip
    if as_json:
        print_json(result.to_dict())
    else:
        print_report(model, result)


def print_report(model: str, report: LatentReport) -> None:
    """The table of layers, what is cached now, and what to do next."""
    rows = [
        (layer.layer, f"{layer.energy_kept:.4f}", f"{layer.score_error_before:.4f}", f"{layer.score_error:.4f}")
        for layer in report.layers
    ]
    print_table(("layer", "energy kept", "score error", "refitted"), rows)
    layout = report.layout
    echo(
        f"\ncached per token and layer: {layout.cached_numbers} numbers instead of {report.source_numbers}"
        f" ({report.share:.0%}), {layout.rank} of them the latent and {2 * layout.pairs} with RoPE"
    )
    if layout.cached_numbers % 32:
        warn(f"{layout.cached_numbers} is not a multiple of 32, so this cache cannot be quantised")
    echo(f"wrote {report.output} ({report.output_bytes / 1e6:,.1f} MB) in {report.seconds:.1f} s\n")
    name = shlex.quote(report.output)
    echo(f"what it lost:   {program()} eval {name} --base {shlex.quote(model)} --chunks 8")
    echo(f"what it says:   {program()} run {name} --beside {shlex.quote(model)} --prompt 'What is machine learning?'")
