"""`surgery tasks`: what a model can still do, beside what its base can."""

from pathlib import Path
from typing import Any

import click

from native.model import ContextOptions
from pipeline.cli.options import (
    cache_type_options,
    force_option,
    gpu_layers_option,
    json_option,
    model_argument,
    refuse_idle,
    threads_option,
)
from pipeline.cli.output import echo, print_json, warn
from pipeline.cli.parameters import WholeNumber
from pipeline.cli.pictures import draw, planned_pictures
from pipeline.cli.progress_report import ProgressReport
from pipeline.cli.sections import SurgeryCommand
from pipeline.cli.task_options import chosen_tasks, task_options
from pipeline.cli.task_tables import print_heat_map, print_results
from pipeline.errors import UsageError
from pipeline.inputs.models import open_model
from pipeline.json_text import plain
from pipeline.tasks.answers import RememberingSession, open_answers
from pipeline.tasks.items import Measured, require_same_vocabulary, task_results
from pipeline.tasks.passkey import NAME, heat_map
from pipeline.tasks.suites import load_suites


@click.command(
    "tasks",
    cls=SurgeryCommand,
    sections={
        "What is asked": "base tasks hellaswag winogrande multiple_choice limit num_fewshot include_path chat_template",
        "Passkeys": "depths places needles repeats seed plots",
        "How the model runs": "ctx cache_type_k cache_type_v gpu_layers threads",
    },
)
@model_argument
@click.option("--base", metavar="SOURCE", help="Ask this model the same items, and compare item by item.")
@task_options
@click.option(
    "--seed", default=0, show_default=True, type=WholeNumber(0), help="For passkey: another seed, other numbers."
)
@click.option("--ctx", type=WholeNumber(2), help="Tokens a context may have.  [default: the model's own]")
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Draw what passkey finds as a heat map, SVG and PNG, in this folder.",
)
@cache_type_options
@gpu_layers_option
@threads_option
@force_option
@json_option
def command(
    model: str,
    base: str | None,
    seed: int,
    ctx: int | None,
    plots: Path | None,
    cache_type_k: str,
    cache_type_v: str,
    gpu_layers: int,
    threads: int,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """What MODEL can still do: tasks of lm-evaluation-harness, beside those of a base, item by item.

    The types of the KV cache are MODEL's; the base has F16. Every answer is kept as soon as it is there (in the cache
    folder, SURGERY_CACHE), so that a command which was interrupted goes on where it was.
    """
    choices = chosen_tasks(options)
    names = [name for name in (model, base) if name is not None]
    opened = [open_model(name) for name in names]
    if base is not None:
        require_same_vocabulary(*opened)
    if not choices:
        raise UsageError("nothing to do; add --tasks, such as --tasks passkey or --tasks piqa,arc_easy")
    if NAME not in choices.tasks:
        refuse_idle(("plots", "seed"), "is for --tasks passkey; add it")
    if not set(choices.tasks) - {NAME}:
        refuse_idle(["ctx"], "is for tasks of lm-evaluation-harness; ask for one in --tasks, or leave it out")
    if not plots:
        refuse_idle(["force"], "is for --plots; add it")
    pictures = planned_pictures(plots, ["passkeys"], force=force) if plots else []
    suites = load_suites(choices, seed=seed, max_length=ctx)
    usual = ContextOptions(threads=threads, gpu_layers=gpu_layers)
    quantised = ContextOptions(threads=threads, gpu_layers=gpu_layers, type_k=cache_type_k, type_v=cache_type_v)
    found: list[list[Measured]] = []
    with open_answers() as answers:
        for name, file, context in zip(names, opened, (quantised, usual), strict=False):
            with (
                RememberingSession(file, context, answers) as session,
                ProgressReport(f"asking {name}", unit="requests") as report,
            ):
                found.append(suites.ask(file.path, session, report.update, warn))
    results = task_results(found[0], found[1] if base else None)
    maps = [heat_map(measured) for measured in found]
    if plots:
        from pipeline.report.passkey_chart import passkey_chart, passkey_rows

        rows = [row for name, cells in zip(names, maps, strict=True) for row in passkey_rows(name, plain(cells))]
        draw({"passkeys": passkey_chart(rows)}, plots, force=force)
    if as_json:
        print_json(
            {
                "model": model,
                "base": base,
                "model_sha256": opened[0].sha256(),
                "cache_type_k": cache_type_k,
                "cache_type_v": cache_type_v,
                "results": results,
                "passkeys": maps,
            }
        )
        return
    print_results(results)
    for name, cells in zip(names, maps, strict=True):
        print_heat_map(name, cells)
    for picture in pictures:
        echo(f"drew {picture}")
