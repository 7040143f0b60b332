"""`surgery calibrate`: what a model's attention sees, over a text."""

from pathlib import Path
from typing import Any

import click

from pipeline.calibration.calibrate import DEFAULT_CHUNKS, calibrate, copy_calibration, write_importance_matrix
from pipeline.calibration.statistics_file import Calibration, open_calibration
from pipeline.cli.options import force_option, json_option, model_argument, threads_option
from pipeline.cli.output import ProgressReport, counted, print_json
from pipeline.cli.parameters import WholeNumber
from pipeline.errors import UsageError, no_file
from pipeline.files.models import open_model
from pipeline.files.output_file import check_output
from pipeline.files.texts import CALIBRATION_TEXT, Text, read_text
from pipeline.gguf_file.reader import GGUFModel


@click.command("calibrate")
@model_argument
@click.option(
    "--text",
    default=CALIBRATION_TEXT,
    show_default=True,
    help="A UTF-8 text file; never the one that the result is evaluated on.",
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
    help="How many chunks of 512 tokens at the most.",
)
@click.option(
    "--probes/--no-probes",
    default=True,
    show_default=True,
    help="Also measure what errors of each projection cost, which operate --metric attention needs.",
)
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
    threads: int,
    force: bool,
    as_json: bool,
) -> None:
    """Run MODEL over a text and keep the statistics that calibrated surgery needs.

    They are kept in the cache folder (SURGERY_CACHE, or ~/.cache/surgery), where surgery operate finds them; an
    interrupted run goes on where it was.
    """
    source = open_model(model)
    for path in (output, imatrix_output):
        if path is not None:
            check_output(path, force=force, sources=source.paths)
    calibration = calibrate_with_progress(source, read_text(text), chunks, threads, sensitivities=probes)
    if output is not None:
        copy_calibration(calibration, output, force=force, sources=source.paths)
    if imatrix_output is not None:
        write_importance_matrix(calibration, imatrix_output, force=force, sources=source.paths)
    facts = describe(calibration, output, imatrix_output)
    if as_json:
        print_json(facts)
        return
    click.echo(
        f"calibrated      {facts['model']} on {facts['text']}, {counted(facts['chunks'], 'chunk')} of {facts['chunk_size']} tokens"
    )
    click.echo(f"statistics      {facts['statistics']} ({facts['statistics_bytes'] / 1e6:,.1f} MB)")
    if imatrix_output is not None:
        click.echo(f"imatrix         {imatrix_output}")


def describe(calibration: Calibration, output: Path | None, imatrix: Path | None) -> dict[str, Any]:
    source = calibration.source
    return {
        "model": source.model_name,
        "model_sha256": source.model_sha256,
        "text": source.text_name,
        "text_sha256": source.text_sha256,
        "chunks": source.chunk_count,
        "chunk_size": source.chunk_size,
        "statistics": str(output or calibration.path),
        "statistics_bytes": calibration.path.stat().st_size,
        "imatrix": imatrix and str(imatrix),
    }


def calibration_for_metric(model: GGUFModel, name: str, metric: str, threads: int) -> Calibration | None:
    """What `obtain_calibration` gives; None for the metric `weights`, which does without."""
    return None if metric == "weights" else obtain_calibration(model, name, metric, threads)


def obtain_calibration(model: GGUFModel, name: str, metric: str, threads: int) -> Calibration:
    """The statistics in the file `name`, or those of the text `name`, which are taken now unless they are cached.

    Raises UsageError when `name` is neither, SurgeryError when the file is damaged.
    """
    path = Path(name).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return open_calibration(path)
    return calibrate_with_progress(
        model, calibration_text(name), DEFAULT_CHUNKS, threads, sensitivities=metric == "attention"
    )


def calibration_text(name: str) -> Text:
    try:
        return read_text(name)
    except UsageError:
        raise UsageError(
            f"--calibration {name}: {no_file(Path(name).expanduser())}; name statistics that surgery calibrate wrote,"
            " or a text"
        ) from None


def calibrate_with_progress(
    model: GGUFModel, text: Text, chunks: int, threads: int, *, sensitivities: bool
) -> Calibration:
    """Calibrate, saying so if it is not cached."""
    with (
        ProgressReport(f"calibrating on {text.name}", unit="chunks") as capturing,
        ProgressReport("probing what errors cost", unit="projections") as probing,
    ):

        def update(done: float, total: float, note: str) -> None:
            if not capturing.total:
                click.echo(f"calibrating {model.name} on {text.name}: {counted(round(total), 'chunk')}, once", err=True)
            capturing.update(done, total, note)

        return calibrate(
            model,
            text,
            chunks=chunks,
            threads=threads,
            sensitivities=sensitivities,
            progress=update,
            probing=probing.update,
        )
