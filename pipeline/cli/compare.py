"""`surgery compare`: the grid of surgery and quantisation, measured."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from native.quantize_file import UNWEIGHED
from pipeline.choices import choices_of
from pipeline.cli.calibrate import calibration_for_metric, calibration_steps
from pipeline.cli.grid_options import chosen_grids, grid_options
from pipeline.cli.options import (
    calibration_option,
    force_option,
    json_option,
    refuse_idle,
    texts_option,
    threads_option,
)
from pipeline.cli.output import counted, echo, print_json, warn
from pipeline.cli.parameters import Choice, Number, WholeNumber
from pipeline.cli.program import program
from pipeline.cli.progress_report import Steps
from pipeline.cli.sections import SurgeryCommand
from pipeline.cli.study_display import StudyDisplay
from pipeline.cli.study_table import show_estimate, show_study
from pipeline.cli.task_options import task_options
from pipeline.compare.cell import AS_IT_IS, Cell
from pipeline.compare.cluster import ClusterRunner
from pipeline.compare.estimate import estimate_study
from pipeline.compare.grid import (
    PRESETS,
    Grid,
    check_cells,
    grid_cells,
    grid_tasks,
    needed_metric,
    needed_roles,
    save_grids,
)
from pipeline.compare.measuring import StopRule
from pipeline.compare.results import ledger_results, study_results
from pipeline.compare.run import run_here, run_study
from pipeline.compare.source_subspaces import look_into_source
from pipeline.compare.study import StudySettings, open_study
from pipeline.compare.tasks import open_tasks
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.models import open_model
from pipeline.inputs.texts import EVALUATION_TEXT, read_text
from pipeline.observations.contamination import SHARED_ENOUGH, shared_lines
from pipeline.observations.importance_matrix import match_importance, read_importance_matrix
from pipeline.observations.statistics_file import Calibration
from pipeline.quantization import quantized_types
from pipeline.tasks.choices import TaskChoices

WHEN_MEASURED = (
    *("texts", "chunks", "ctx", "prompt", "answer_tokens", "stop_above", "precision", "calibration", "imatrix"),
    *("force_rerun", "scheduler", "threads"),
)
"""The options that say how cells are measured, of which a plan holds nothing."""


@click.command(
    "compare",
    cls=SurgeryCommand,
    sections={
        "What is replaced": "methods targets layers group_layers",
        "How much is kept": "thresholds ranks budgets caches means seeds",
        "Calibration": "metrics calibration",
        "Types": "quants imatrix outtypes cache_types",
        "Grids by name": "preset plan_file save_plan",
        "Measuring": "texts chunks ctx prompt answer_tokens stop_above precision",
        "What it can still do": " ".join(choices_of(TaskChoices)),
        "The study": "folder dry_run force_rerun status_of scheduler",
    },
)
@click.argument("model", required=False)
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), help="The folder of the study.")
@grid_options
@task_options
@click.option("--preset", type=Choice(list(PRESETS)), help="quick: a first look; original: the published cells.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="A grid in a file; options overrule it.")
@click.option(
    "--save-plan",
    type=click.Path(path_type=Path),
    help="Write the grid to this file; without -o or --dry-run, end there.",
)
@texts_option
@calibration_option("Statistics that surgery calibrate wrote, or a text, for metrics other than weights.")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix for quantising, as a GGUF file.")
@click.option("--chunks", default=20, show_default=True, type=WholeNumber(2), help="Chunks of each text to measure.")
@click.option("--ctx", default=512, show_default=True, type=WholeNumber(8), help="Tokens a chunk.")
@click.option("--prompt", default="What is machine learning?", show_default=True, help="Every cell answers it.")
@click.option("--answer-tokens", default=64, show_default=True, type=WholeNumber(0), help="0 for no answers.")
@click.option(
    "--stop-above",
    type=Number("a number above 0", 0, above=True),
    help="Stop a cell when its KL divergence is surely above this, in nats.",
)
@click.option(
    "--precision",
    type=Number("a number above 0", 0, above=True),
    help="Stop a cell when its standard error is below this share of its KL.",
)
@click.option("--dry-run", is_flag=True, help="List the cells, their sizes and an estimate of the time; run nothing.")
@click.option("--force-rerun", is_flag=True, help="Measure the cells of this grid again.")
@click.option(
    "--status", "status_of", type=click.Path(path_type=Path), help="Show how far the study in this folder is."
)
@click.option("--scheduler", metavar="ADDRESS", help="Measure on the workers of this Dask scheduler.")
@threads_option
@force_option
@json_option
def command(model: str | None, folder: Path | None, status_of: Path | None, as_json: bool, **options: Any) -> None:
    """Measure every combination of surgery and quantisation of MODEL: which loses least for its size?

    Whatever is measured goes into the study's ledger, chunk by chunk; the same command goes on where it was. Then:
    surgery report STUDY.
    """
    if status_of is not None:
        others = {str(param.name) for param in click.get_current_context().command.params} - {"status_of", "as_json"}
        refuse_idle(sorted(others), "changes nothing of --status; leave one of them out")
        show_study(study_results(status_of), as_json)
        return
    grids = chosen_grids(options)
    cells = grid_cells(grids)
    refuse_idle_options(cells, options)
    plan_only = options["save_plan"] and folder is None and not options["dry_run"]
    if plan_only:
        refuse_idle(WHEN_MEASURED, "is not part of a plan; give it with --plan, when the study is made")
    elif model is None:
        raise UsageError("name the MODEL to compare, or a study with --status")
    source = None if model is None else open_model(model)
    if source is not None:
        check_cells(source, cells)
    if options["save_plan"]:
        save_plan(
            options["save_plan"],
            grids,
            len(cells),
            force=options["force"],
            as_json=as_json and plan_only,
            beside=not plan_only,
        )
    if plan_only or source is None:
        return
    settings = study_settings(options)
    if imatrix := options["imatrix"]:
        match = match_importance(read_importance_matrix(imatrix), source, imatrix)
        if match.without:
            warn(f"--imatrix {imatrix}: {match}")
    choices = grid_tasks(grids)
    if options["dry_run"]:
        with open_tasks(source, choices, threads=settings.threads, warn=warn) as tasks:
            show_estimate(estimate_study(source, cells, settings, tasks), len(cells), as_json)
        return
    if folder is None:
        raise UsageError("-o: name a folder for the study")
    if any(cell.quant != AS_IT_IS for cell in cells) and (types := quantized_types(source)):
        warn(f"{source.name} is quantised already ({', '.join(types)}); quantising it again adds loss to loss")
    runner = ClusterRunner(options["scheduler"]) if options["scheduler"] else run_here
    calibrating = calibration_steps(options["calibration"], needed_metric(cells), needed_roles(cells))
    steps = Steps(calibrating, then="comparing")
    calibrate = partial(calibration_for, source, cells, settings, options, steps)
    with (
        open_tasks(source, choices, threads=settings.threads, warn=warn) as tasks,
        open_study(folder, source, settings, calibrate, tasks) as study,
    ):
        study.ledger.set_facts(
            {
                "command": shlex.join(["surgery", *sys.argv[1:]]),
                "named": {"model": model, "calibration": options["calibration"]},
            }
        )
        if options["force_rerun"]:
            study.forget(cells)
        with StudyDisplay(steps.last) as display:
            progress = run_study(study, cells, display.watch, runner)
            if any(cell.plan for cell in cells):
                look_into_source(study, lambda doing: display.watch(replace(progress, doing=doing)))
        show_study(ledger_results(study.ledger), as_json)
    if not as_json:
        echo(f"\nthe whole story:   {program()} report {shlex.quote(str(folder))}")
    if progress.failures:
        raise SurgeryError(f"{counted(len(progress.failures), 'cell')} failed; first {progress.failures[0]}")


def refuse_idle_options(cells: Sequence[Cell], options: dict[str, Any]) -> None:
    """Raise UsageError for an option that nothing asked for would use."""
    if not options["save_plan"]:
        refuse_idle(["force"], "is for --save-plan; --force-rerun measures cells again")
    if not any(cell.calibrated for cell in cells):
        refuse_idle(["calibration"], "is used by --metrics inputs and attention and by method latent; add one of them")
    if not any(cell.quant not in (AS_IT_IS, *UNWEIGHED) for cell in cells):
        refuse_idle(["imatrix"], "changes nothing in any of --quants; add one such as Q4_K_M")
    if not options["answer_tokens"]:
        refuse_idle(["prompt"], "nothing is answered with --answer-tokens 0; leave one of them out")


def save_plan(path: Path, grids: Sequence[Grid], count: int, *, force: bool, as_json: bool, beside: bool) -> None:
    """`beside`: the command prints something else as well."""
    save_grids(path, grids, force=force)
    if as_json:
        print_json({"plan": path, "cells": count})
    else:
        echo(f"wrote {path}: {counted(count, 'cell')}, for --plan", err=beside)


def study_settings(options: dict[str, Any]) -> StudySettings:
    return StudySettings(
        tuple(read_text(name) for name in options["texts"] or (EVALUATION_TEXT,)),
        chunks=options["chunks"],
        n_ctx=options["ctx"],
        threads=options["threads"],
        prompt=options["prompt"],
        answer_tokens=options["answer_tokens"],
        rule=StopRule(options["stop_above"], options["precision"]),
        importance_matrix=options["imatrix"],
    )


def calibration_for(
    source: GGUFModel, cells: Sequence[Cell], settings: StudySettings, options: dict[str, Any], steps: Steps
) -> Calibration | None:
    """The statistics that the cells' metrics need. Warns of a text that is also measured on."""
    calibration = calibration_for_metric(
        source, options["calibration"], needed_metric(cells), settings.threads, needed_roles(cells), steps
    )
    for text in settings.texts:
        if calibration and (share := shared_lines(calibration.sketch, text.content)) >= SHARED_ENOUGH:
            warn(f"{share:.0%} of {text.name} is in the text calibrated on; what is measured looks better than it is")
    return calibration
