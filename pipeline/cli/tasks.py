"""`surgery tasks`: what a model can still do, beside what its base can."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from native.model import ContextOptions
from pipeline.cli.options import (
    cache_type_options,
    gpu_layers_option,
    json_option,
    list_option,
    model_argument,
    threads_option,
)
from pipeline.cli.output import ProgressReport, echo, print_json, print_table, warn
from pipeline.cli.parameters import Number, WholeNumber
from pipeline.cli.sections import SectionedCommand
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.models import open_model
from pipeline.tasks.answers import RememberingSession, open_answers
from pipeline.tasks.items import Measured, require_same_vocabulary, result_rows
from pipeline.tasks.llama_files import TaskFile, ask_file, read_hellaswag, read_multiple_choice, read_winogrande
from pipeline.tasks.passkey import DEPTHS, NAME, NEEDLES, OWNERS, PLACES, PasskeyOptions, ask_passkeys, heat_map
from pipeline.tasks.session import Session

SHADES = " ░▒▓█"
Suite = Callable[[GGUFModel, Session, ContextOptions, ProgressReport], list[Measured]]
"""Asks a model everything of one kind."""


@click.command(
    "tasks",
    cls=SectionedCommand,
    sections={
        "What is asked": "base tasks hellaswag winogrande multiple_choice limit num_fewshot include_path chat_template",
        "Passkeys": "depths places needles repeats seed",
        "How the model runs": "ctx cache_type_k cache_type_v gpu_layers threads",
    },
)
@model_argument
@click.option("--base", metavar="SOURCE", help="Ask this model the same items, and compare item by item.")
@list_option(
    "--tasks",
    str,
    "Tasks of lm-evaluation-harness, such as piqa,arc_easy, or YAML files of tasks; and passkey, which needs no data: is a number found in a long text?",
)
@click.option(
    "--hellaswag",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="HellaSwag as llama.cpp's perplexity tool has it, with its rules.",
)
@click.option(
    "--winogrande",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="WinoGrande as llama.cpp's perplexity tool has it, with its rules.",
)
@click.option(
    "--multiple-choice",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Multiple choice as llama.cpp's perplexity tool has it, with its rules.",
)
@click.option("--limit", type=WholeNumber(1), help="Items of each task.  [default: all]")
@click.option("--num-fewshot", type=WholeNumber(0), help="Examples before each item.  [default: the task's]")
@click.option("--include-path", type=click.Path(path_type=Path), help="A folder with more tasks as YAML files.")
@click.option("--chat-template", is_flag=True, help="Ask in the model's chat template.")
@list_option(
    "--depths", WholeNumber(1), "For --tasks passkey: how many tokens its texts have.  [default: 512,2048,4096]"
)
@list_option(
    "--places",
    Number("a share from 0 to 1", 0, 1),
    "For passkey: where the number stands.  [default: 0,0.25,0.5,0.75,1]",
)
@list_option(
    "--needles",
    WholeNumber(1, len(OWNERS)),
    "For passkey: how many numbers a text has, of which one is asked for.  [default: 1,4]",
)
@click.option(
    "--repeats", default=5, show_default=True, type=WholeNumber(1), help="For passkey: questions a depth and place."
)
@click.option(
    "--seed", default=0, show_default=True, type=WholeNumber(0), help="For passkey: another seed, other numbers."
)
@click.option("--ctx", type=WholeNumber(2), help="Tokens a context may have.  [default: the model's own]")
@cache_type_options
@gpu_layers_option
@threads_option
@json_option
def command(
    model: str,
    base: str | None,
    tasks: tuple[str, ...] | None,
    hellaswag: Path | None,
    winogrande: Path | None,
    multiple_choice: Path | None,
    limit: int | None,
    num_fewshot: int | None,
    include_path: Path | None,
    chat_template: bool,
    depths: tuple[int, ...] | None,
    places: tuple[float, ...] | None,
    needles: tuple[int, ...] | None,
    repeats: int,
    seed: int,
    ctx: int | None,
    cache_type_k: str,
    cache_type_v: str,
    gpu_layers: int,
    threads: int,
    as_json: bool,
) -> None:
    """What MODEL can still do: tasks of lm-evaluation-harness, beside those of a base, item by item.

    The types of the KV cache are MODEL's; the base has F16. Every answer is kept as soon as it is there (in the cache
    folder, SURGERY_CACHE), so that a command which was interrupted goes on where it was.
    """
    names = [name for name in (model, base) if name is not None]
    opened = [open_model(name) for name in names]
    if base is not None:
        require_same_vocabulary(*opened)
    suites = []
    if tasks and NAME in tasks:
        suites.append(_passkeys(PasskeyOptions(depths or DEPTHS, places or PLACES, needles or NEEDLES, repeats, seed)))
        tasks = tuple(task for task in tasks if task != NAME)
    if tasks:
        suites.append(_harness(tasks, limit, num_fewshot, include_path, chat_template, ctx))
    for path, read in (
        (hellaswag, read_hellaswag),
        (winogrande, read_winogrande),
        (multiple_choice, read_multiple_choice),
    ):
        if path is not None:
            suites.append(_file(read(path, limit)))
    if not suites:
        raise UsageError("nothing to do; add --tasks, such as --tasks passkey or --tasks piqa,arc_easy")
    quantised = ContextOptions(threads=threads, gpu_layers=gpu_layers, type_k=cache_type_k, type_v=cache_type_v)
    plain = ContextOptions(threads=threads, gpu_layers=gpu_layers)
    found: list[list[Measured]] = []
    with open_answers() as answers:
        for number, file in enumerate(opened):
            options = plain if number else quantised
            with ExitStack() as stack:
                session = stack.enter_context(RememberingSession(file, options, answers))
                report = stack.enter_context(ProgressReport(f"asking {names[number]}", unit="requests"))
                found.append([m for suite in suites for m in suite(file, session, options, report)])
    rows = result_rows(found[0], found[1] if base else None)
    if as_json:
        print_json(
            {
                "model": model,
                "base": base,
                "model_sha256": opened[0].sha256(),
                "cache_type_k": cache_type_k,
                "cache_type_v": cache_type_v,
                "results": rows,
                "passkeys": [heat_map(measured) for measured in found],
            }
        )
    else:
        print_rows(rows, compared=base is not None)
        for name, measured in zip(names, found, strict=True):
            print_heat_map(name, heat_map(measured))


def _harness(
    tasks: tuple[str, ...],
    limit: int | None,
    num_fewshot: int | None,
    include_path: Path | None,
    chat_template: bool,
    ctx: int | None,
) -> Suite:
    if find_spec("lm_eval") is None:
        raise SurgeryError("--tasks: needs lm-evaluation-harness; run: pip install 'surgery[tasks]'")
    from pipeline.tasks.evaluate import HarnessOptions, Tasks
    from pipeline.tasks.harness import SurgeryLM

    loaded = Tasks(HarnessOptions(tasks, limit, num_fewshot, include_path, chat_template))

    def ask(file: GGUFModel, session: Session, options: ContextOptions, report: ProgressReport) -> list[Measured]:
        asked = SurgeryLM(str(file.path), max_length=ctx, session=session)
        measured = loaded.evaluate(asked, report.update)
        if asked.truncated:
            warn(
                f"{file.path}: {asked.truncated:,} requests are longer than the context of {asked.max_length} tokens"
                " and lost their beginning"
            )
        return measured

    return ask


def _passkeys(options: PasskeyOptions) -> Suite:
    return lambda file, session, context, report: ask_passkeys(session, options, report.update)


def _file(file: TaskFile) -> Suite:
    return lambda model, session, context, report: ask_file(session, file, report.update)


def print_heat_map(name: str, cells: Sequence[dict[str, Any]]) -> None:
    """The share found by depth and place, a table a number of needles; the darker, the more."""
    for needles in dict.fromkeys(cell["needles"] for cell in cells):
        mine = [cell for cell in cells if cell["needles"] == needles]
        places = dict.fromkeys(cell["place"] for cell in mine)
        echo(f"\n{name}: {'a number' if needles == 1 else f'one of {needles} numbers'} in a text, found by place")
        rows = []
        for depth in dict.fromkeys(cell["depth"] for cell in mine):
            shares = [cell["found"] for cell in mine if cell["depth"] == depth]
            rows.append((f"{depth:,} tokens", *(f"{SHADES[round(share * 4)]} {share:4.0%}" for share in shares)))
        print_table(("", *(f"{place:.0%}" for place in places)), rows)


def print_rows(rows: Sequence[dict[str, Any]], *, compared: bool) -> None:
    """A line a metric: values with 95 % intervals, and the difference over the same items."""
    headings = ["task", "metric", "items", "model"]
    if compared:
        headings += ["base", "difference", "gained", "lost", "p"]
    print_table(headings, [_cells(row, compared) for row in rows])


def _cells(row: dict[str, Any], compared: bool) -> list[str]:
    cells = [row["task"], row["metric"], f"{row['items']:,}", _with_interval(row["value"])]
    if compared:
        difference = row["difference"]
        cells.append(_with_interval(row["base"]))
        cells.append(_with_interval(difference["difference"], sign="+") if difference else "")
        cells += ["" if not difference or difference[n] is None else f"{difference[n]:,}" for n in ("gained", "lost")]
        cells.append("" if not difference or difference["p"] is None else f"{difference['p']:.2g}")
    return cells


def _with_interval(value: dict[str, Any], sign: str = "") -> str:
    text = f"{value['mean']:{sign}.4f}"
    return text if value["low"] is None else f"{text} [{value['low']:{sign}.4f}, {value['high']:{sign}.4f}]"
