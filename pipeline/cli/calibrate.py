"""`surgery calibrate`: what a model's attention sees, over a text."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pipeline.calibration.calibrate import DEFAULT_CHUNKS
from pipeline.calibration.obtain import CalibrationWatch, obtain_calibration, written_text
from pipeline.calibration.self_text import is_self
from pipeline.cli.options import force_option, json_option, model_argument, refuse_idle, threads_option
from pipeline.cli.output import counted, duration, echo, print_json, warn
from pipeline.cli.parameters import WholeNumber
from pipeline.cli.progress_report import Expected, Steps
from pipeline.cli.sections import SurgeryCommand
from pipeline.errors import UsageError
from pipeline.files.output_file import check_output
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.models import open_model
from pipeline.inputs.texts import AUTO_TEXT
from pipeline.layers import AttentionLayers
from pipeline.observations.experts import expert_notes
from pipeline.observations.importance_matrix import write_importance_matrix
from pipeline.observations.statistics_file import Calibration, copy_calibration
from pipeline.targets import QKV, TARGETS, target_roles

WRITING, STATISTICS, PROBING = 125, 150, 80
"""About how many seconds the embedded model took on two processors, for each projection in PROBING: how steps compare."""


@click.command(
    "calibrate",
    cls=SurgeryCommand,
    sections={
        "What is read": "text chunks probes",
        "What is written": "output imatrix_output show_text force",
    },
)
@model_argument
@click.option(
    "--text",
    default=AUTO_TEXT,
    show_default=True,
    help="A UTF-8 text file, never the one that the result is evaluated on; self, which MODEL writes (self:SEED"
    " another one); or several with commas between, each counting by its chunks. auto: self, or python-docs-calibration"
    " where writing would take over an hour.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write the statistics to this file.")
@click.option(
    "--imatrix-output", type=click.Path(path_type=Path), help="Write an importance matrix in llama.cpp's GGUF form."
)
@click.option(
    "--chunks",
    default=DEFAULT_CHUNKS,
    show_default=True,
    type=WholeNumber(1),
    help="How many chunks of 512 tokens at the most, of each text.",
)
@click.option(
    "--probes/--no-probes",
    default=True,
    show_default=True,
    help="Also measure what errors of each projection cost, which operate --metric attention needs.",
)
@click.option(
    "--targets",
    default="qkv",
    show_default=True,
    help="What operate is to have as --targets: beyond q, k and v, such as all, more is observed and probed.",
)
@click.option("--show-text", is_flag=True, help="Print what the model wrote for --text self, and do nothing else.")
@threads_option
@force_option
@json_option
def command(
    model: str,
    text: str,
    output: Path | None,
    imatrix_output: Path | None,
    chunks: int,
    probes: bool,
    targets: str,
    show_text: bool,
    threads: int,
    force: bool,
    as_json: bool,
) -> None:
    """Run MODEL over a text and keep the statistics that calibrated surgery needs.

    They are kept in the cache folder (SURGERY_CACHE, or ~/.cache/surgery), where surgery operate finds them; an
    interrupted run goes on where it was.
    """
    roles = target_roles(targets)
    source = open_model(model)
    for path in (output, imatrix_output):
        if path is not None:
            check_output(path, force=force, sources=source.paths)
    if show_text:
        refuse_idle(("output", "imatrix_output"), "is not written by --show-text; leave one of them out")
        refuse_idle(("probes", "targets", "force"), "changes nothing of --show-text; leave one of them out")
        print_own_text(source, text, chunks, threads, as_json)
        return
    if not (output or imatrix_output):
        refuse_idle(["force"], "is for -o and --imatrix-output; what is calibrated anew is decided by model and text")
    metric = "attention" if probes else "inputs"
    with calibration_progress(source, text, metric, Steps(calibration_steps(text, metric, roles))) as watch:
        calibration = obtain_calibration(
            source, text,
            chunks=chunks, metric=metric, roles=roles, threads=threads, watch=watch,
            argument="text",
        )  # fmt: skip
    if output is not None:
        copy_calibration(calibration, output, force=force, sources=source.paths)
    if imatrix_output is not None:
        write_importance_matrix(calibration, imatrix_output, force=force, sources=source.paths)
    notes = () if QKV.issuperset(roles) else notes_on_experts(source, calibration)
    facts = {**describe(calibration, output, imatrix_output), "notes": list(notes)}
    if as_json:
        print_json(facts)
        return
    echo(
        f"calibrated      {facts['model']} on {facts['text']}, {counted(facts['chunks'], 'chunk')} of {facts['chunk_size']} tokens"
    )
    echo(f"statistics      {facts['statistics']} ({facts['statistics_bytes'] / 1e6:,.1f} MB)")
    for note in notes:
        echo(f"experts         {note}")
    if imatrix_output is not None:
        echo(f"imatrix         {imatrix_output}")


def print_own_text(model: GGUFModel, name: str, chunks: int, threads: int, as_json: bool) -> None:
    """Print what `model` wrote, or writes now. Raises UsageError for a text that is not its own."""
    if not (is_self(name) or name == AUTO_TEXT):
        raise UsageError(f"--show-text: shows what a model writes, and --text {name} is not that; add --text self")
    with calibration_progress(model, name, "inputs", Steps([Expected(WRITING)])) as watch:
        text = written_text(model, name, chunks, threads, watch)
    if as_json:
        print_json({"model": model.name, "text": text.name, "text_sha256": text.sha256, "content": text.content})
    else:
        echo(text.content)


def notes_on_experts(model: GGUFModel, calibration: Calibration) -> tuple[str, ...]:
    layers = AttentionLayers(model, roles=TARGETS)
    return expert_notes(calibration, layers.blocks_beside(layers))


def describe(calibration: Calibration, output: Path | None, imatrix: Path | None) -> dict[str, Any]:
    source = calibration.origin
    return {
        "model": source.model_name,
        "model_sha256": source.model_sha256,
        "text": source.text_name,
        "text_sha256": source.text_sha256,
        "chunks": source.chunk_count,
        "chunk_size": source.chunk_size,
        "targets": source.targets,
        "statistics": str(output or calibration.path),
        "statistics_bytes": calibration.path.stat().st_size,
        "imatrix": imatrix and str(imatrix),
    }


def calibration_for_metric(
    model: GGUFModel, name: str, metric: str, threads: int, roles: Collection[str] = QKV, steps: Steps | None = None
) -> Calibration | None:
    """What `obtain_calibration` gives, with progress; None for the metric `weights`, which does without.

    `steps` are those of the command, of which calibrating has the first; without it they are those of calibrating alone.
    """
    if metric == "weights":
        return None
    with calibration_progress(model, name, metric, steps or Steps(calibration_steps(name, metric, roles))) as watch:
        return obtain_calibration(model, name, metric=metric, roles=roles, threads=threads, watch=watch)


def calibration_steps(text: str, metric: str, roles: Collection[str]) -> list[Expected]:
    """The steps that calibrating has at the most: writing, taking statistics, probing."""
    if metric == "weights":
        return []
    times = len(text.split(","))
    writing = [Expected(WRITING, written)] if (written := times_written(text)) else []
    probing = [Expected(PROBING * len(roles), times)] if metric == "attention" else []
    return [*writing, Expected(STATISTICS, times), *probing]


def times_written(text: str) -> int:
    """How many of the texts the model may have to write."""
    return sum(is_self(name) or name == AUTO_TEXT for name in map(str.strip, text.split(",")))


@contextmanager
def calibration_progress(model: GGUFModel, text: str, metric: str, steps: Steps) -> Iterator[CalibrationWatch]:
    """How far writing, calibrating and probing are, shown; it is said that it takes a while, unless it is cached."""
    with ExitStack() as shown:
        watch = CalibrationWatch(instead=warn)
        if times_written(text):
            writing = shown.enter_context(steps.next(f"{model.name} is writing", unit="tokens"))
            watch = replace(watch, writing=writing.update)
        capturing = shown.enter_context(steps.next(f"calibrating on {text}", unit="chunks"))
        if metric == "attention":
            probing = shown.enter_context(steps.next("probing what errors cost", unit="projections"))
            watch = replace(watch, probing=probing.update)

        def announce(tokens: int, seconds: float) -> None:
            writes = f"{model.name} writes {counted(tokens, 'token')} to be calibrated on, once"
            echo(f"{writes}: about {duration(seconds)} {steps.described_left()}".rstrip(), err=True)

        def update(done: float, total: float, note: str) -> None:
            if not capturing.total:
                echo(f"calibrating {model.name} on {text}: {counted(round(total), 'chunk')}, once", err=True)
            capturing.update(done, total, note)

        yield replace(watch, capturing=update, announce=announce)
