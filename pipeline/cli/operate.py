"""`surgery operate`: replace a model's projections by low-rank reconstructions."""

import shlex
from pathlib import Path
from typing import Any

import click

from pipeline.attention import number_ranges
from pipeline.cli.calibrate import calibration_for_metric, calibration_steps
from pipeline.cli.choices import metric_options, plan_options
from pipeline.cli.options import (
    force_option,
    given,
    json_option,
    model_argument,
    output_option,
    refuse_idle_calibration,
    threads_option,
)
from pipeline.cli.output import echo, print_json, print_table, warn
from pipeline.cli.program import program
from pipeline.cli.progress_report import Expected, Steps
from pipeline.cli.quantize import print_quantization
from pipeline.cli.sections import SurgeryCommand
from pipeline.errors import UsageError
from pipeline.files.output_file import check_output
from pipeline.inputs.models import gguf_name, is_checkpoint, open_source
from pipeline.operation.layer_groups import check_plan
from pipeline.operation.operate import operate
from pipeline.operation.operate_and_quantize import operate_and_quantize
from pipeline.operation.plan import Plan, check_method
from pipeline.operation.report import OperationReport
from pipeline.quantization import known_type, quantized_types

OPERATING, QUANTISING = 10, 5  # seconds, as pipeline.cli.calibrate has them


@click.command(
    "operate",
    cls=SurgeryCommand,
    sections={
        "What is replaced": "method targets layers group_layers",
        "How much is kept": "threshold rank budget mean seed",
        "Calibration": "metric calibration",
        "What is written": "output outtype quant pre force",
    },
)
@model_argument
@output_option
@plan_options(Plan, but=("metric",))
@metric_options
@click.option("--quant", metavar="TYPE", help="Then quantise the whole file to TYPE, such as Q4_K_M.")
@click.option("--pre", metavar="NAME", help="A checkpoint's pre-tokenizer, as llama.cpp calls it.")
@threads_option
@force_option
@json_option
def command(
    model: str,
    output: Path,
    calibration: str,
    quant: str | None,
    pre: str | None,
    threads: int,
    force: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Write OUTPUT: MODEL with its q, k and v, or other --targets, replaced by low-rank reconstructions.

    Everything else in the file stays byte-identical, and surgery.* metadata says what was done.
    """
    plan = Plan(**choices)
    check_method(plan, chosen=given("method") or plan.method != Plan.method)
    if quant:
        known_type(quant)  # before anything takes long
    refuse_idle_calibration(plan.metric)
    if pre and not is_checkpoint(model):
        raise UsageError("--pre: is for a Hugging Face checkpoint; a GGUF file says itself which it has")
    if is_checkpoint(model):
        check_output(output, force=force)  # before anything is fetched
        if plan.metric != "weights":
            raise UsageError(
                f"--metric {plan.metric}: needs a model that llama.cpp can run; convert it first:"
                f" {program()} convert {shlex.quote(model)} {shlex.quote(gguf_name(model))}"
            )
    source = open_source(model, pre=pre)
    for note in getattr(source, "notes", ()):
        warn(note)
    check_output(output, force=force, sources=source.paths)
    check_plan(source, plan)
    operating = [Expected(OPERATING), *([Expected(QUANTISING)] if quant else [])]
    steps = Steps([*calibration_steps(calibration, plan.metric, plan.roles), *operating])
    statistics = calibration_for_metric(source, calibration, plan.metric, threads, plan.roles, steps)
    if quant and (types := quantized_types(source)):
        warn(f"{source.name} is quantised already ({', '.join(types)}); quantising it again adds loss to loss")
    with (
        steps.next("operating", unit="groups") as writing,
        steps.next("quantising", unit="tensors") as quantising,
    ):
        if quant:
            report, quantization = operate_and_quantize(
                source, output, plan, quant,
                calibration=statistics, threads=threads, force=force,
                operating=writing.update, quantizing=quantising.update,
            )  # fmt: skip
        else:
            report = operate(
                source, output, plan, calibration=statistics, threads=threads, force=force, progress=writing.update
            )
            quantization = None
    if plan.budget and report.factor_numbers > plan.budget * report.dense_numbers + 0.5:  # half a number for rounding
        share = report.factor_numbers / report.dense_numbers
        warn(
            f"--budget {plan.budget:g}: asks for {plan.budget * report.dense_numbers:,.0f} stored numbers, but already one"
            f" component a group, the least, takes {report.factor_numbers:,} ({share:.2%}); that is what was written"
        )
    if as_json:
        print_json(report.to_dict() | ({"quantization": quantization.to_dict()} if quantization else {}))
    else:
        print_report(model, report)
        if quantization:
            print_quantization(quantization)


def print_report(model: str, report: OperationReport) -> None:
    """The table of groups, the numbers that the factors would take, and what to do next."""
    rows = [
        (
            number_ranges(group.layers),
            group.shown_group,
            f"{group.rows} x {group.columns}",
            group.shown_rank,
            f"{group.explained:.4f}",
            "  ".join(f"{role} {error:.4f}" for role, error in group.relative_error.items()),
        )
        for group in report.groups
    ]
    print_table(("layer", "group", "n x d", "rank", "variance kept", "relative error"), rows)
    for reason, numbers in report.skipped_by_reason.items():
        echo(f"left alone: layer{'s' if len(numbers) > 1 else ''} {number_ranges(numbers)} ({reason})")
    for note in report.notes:
        echo(note)
    share = report.factor_numbers / report.dense_numbers
    echo(
        f"\nnumbers stored if the factors were kept: {report.factor_numbers:,} of {report.dense_numbers:,} ({share:.0%})"
    )
    echo(
        f"wrote {report.output} ({report.output_bytes / 1e6:,.1f} MB) in {report.seconds:.1f} s, {report.decomposition_seconds:.1f} s of it decomposing"
    )
    name = shlex.quote(report.output)
    echo()
    if is_checkpoint(model):
        base = gguf_name(model)
        echo(f"to compare:     {program()} convert {shlex.quote(model)} {shlex.quote(base)}")
        model = base
    echo(f"what it lost:   {program()} eval {name} --base {shlex.quote(model)} --chunks 8")
    echo(f"what it says:   {program()} run {name} --beside {shlex.quote(model)} --prompt 'What is machine learning?'")
