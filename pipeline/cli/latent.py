"""`surgery latent`: a model whose KV cache is smaller, for an unmodified llama.cpp."""

import shlex
from pathlib import Path
from typing import Any

import click

from pipeline.calibration.obtain import obtain_calibration
from pipeline.cli.calibrate import calibration_progress, calibration_steps
from pipeline.cli.choices import plan_options
from pipeline.cli.options import (
    calibration_option,
    force_option,
    given,
    json_option,
    model_argument,
    output_option,
    threads_option,
)
from pipeline.cli.output import echo, print_json, print_table, warn
from pipeline.cli.program import program
from pipeline.cli.progress_report import Expected, Steps
from pipeline.cli.sections import SurgeryCommand
from pipeline.errors import UsageError
from pipeline.files.output_file import check_output
from pipeline.inputs.models import open_model
from pipeline.latent.convert import LatentReport, convert_to_latent
from pipeline.latent.kind import check_latent
from pipeline.latent.plan import METHOD, LatentPlan
from pipeline.latent.rope import EXACT

SAMPLING, CONVERTING = 115, 170  # seconds, as pipeline.cli.calibrate has them


@click.command(
    "latent",
    cls=SurgeryCommand,
    sections={
        "What is cached": "method cache cache_bytes cache_type rotary",
        "Calibration": "calibration",
        "What is written": "output outtype force",
    },
)
@model_argument
@output_option
@plan_options(LatentPlan)
@calibration_option(
    "A text to calibrate on, like what the model is to read, or statistics that surgery calibrate made of one."
)
@threads_option
@force_option
@json_option
def command(
    model: str,
    output: Path,
    calibration: str,
    threads: int,
    force: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write OUTPUT: MODEL, a Llama, with keys and values cached as one small latent (multi-head latent attention).

    Any llama.cpp that knows DeepSeek's architecture runs it. Nothing is trained.
    """
    if choices["cache_bytes"] is not None and (given("cache") or given("cache_type")):
        raise UsageError("--cache-bytes chooses --cache and --cache-type; leave them out")
    plan = LatentPlan(**choices)
    source = open_model(model)
    check_latent(source, plan)  # before anything takes long
    check_output(output, force=force, sources=source.paths)
    converting = [Expected(SAMPLING), Expected(CONVERTING)]
    steps = Steps([*calibration_steps(calibration, plan.metric, plan.roles), *converting])
    with calibration_progress(source, calibration, plan.metric, steps) as watch:
        statistics = obtain_calibration(
            source, calibration, metric=plan.metric, roles=plan.roles, threads=threads, watch=watch
        )
    with steps.next("sampling", unit="chunks") as sampling, steps.next("converting", unit="layers") as report:
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
    headings = ("layer", "energy kept", "score error", "refitted")
    shown = len(headings) if report.plan.method == METHOD else headings.index("refitted")
    print_table(headings[:shown], [row[:shown] for row in rows])
    layout = report.layout
    echo(
        f"\ncached per token and layer: {layout.cached_numbers} numbers instead of {report.source_numbers}"
        f" ({report.share:.0%}), {layout.rank} of them the latent and {2 * layout.pairs} with RoPE;"
        f" as {report.plan.cache_type} {report.byte_share:.0%} of the bytes of an F16 cache"
    )
    if report.rope_deviation > EXACT:
        off = report.rope_deviation
        echo(
            f"positions: the frequencies of RoPE are off by up to {off:.2g} radians a token, {512 * off:.2g} at a distance of"
            f" 512 and {8192 * off:.2g} at 8,192, since deepseek2 cannot be told all of them"
        )
    if layout.cached_numbers % 32:
        warn(f"{layout.cached_numbers} is not a multiple of 32, so this cache cannot be quantised")
    echo(f"wrote {report.output} ({report.output_bytes / 1e6:,.1f} MB) in {report.seconds:.1f} s\n")
    name = shlex.quote(report.output)
    kind = report.plan.cache_type
    options = "" if kind == "f16" else f" --cache-type-k {kind} --cache-type-v {kind}"
    echo(f"what it lost:   {program()} eval {name} --base {shlex.quote(model)} --chunks 8{options}")
    echo(
        f"what it says:   {program()} run {name}{options} --beside {shlex.quote(model)} --prompt 'What is machine learning?'"
    )
