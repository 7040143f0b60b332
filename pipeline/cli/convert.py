"""`surgery convert`: a Hugging Face checkpoint as a GGUF file."""

from pathlib import Path

import click

from pipeline.cli.options import force_option, json_option
from pipeline.cli.output import echo, print_json, warn
from pipeline.cli.parameters import Choice
from pipeline.cli.progress_report import ProgressReport
from pipeline.cli.sections import SurgeryCommand
from pipeline.convert.checkpoint import OUTTYPES
from pipeline.convert.write import write_model
from pipeline.errors import UsageError
from pipeline.files.output_file import check_output
from pipeline.inputs.models import is_checkpoint, open_source


@click.command("convert", cls=SurgeryCommand)
@click.argument("model")
@click.argument("output", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.option(
    "--outtype",
    default="auto",
    show_default=True,
    type=Choice(OUTTYPES),
    help="Type of the matrices; auto: the checkpoint's own. Norms and biases become F32.",
)
@click.option(
    "--pre", metavar="NAME", help="The pre-tokenizer as llama.cpp calls it, such as llama-bpe.  [default: recognised]"
)
@force_option
@json_option
def command(model: str, output: Path, outtype: str, pre: str | None, force: bool, as_json: bool) -> None:
    """Write MODEL, a checkpoint folder or a hub id (org/name or org/name@revision), as one GGUF file."""
    if not is_checkpoint(model):
        raise UsageError(f"{model}: expected a Hugging Face checkpoint: a folder, or org/name of the hub")
    check_output(output, force=force)  # before anything is fetched
    source = open_source(model, outtype=outtype, pre=pre)
    for note in getattr(source, "notes", ()):
        warn(note)
    with ProgressReport("converting", unit="bytes") as report:
        result = write_model(source, output, force=force, progress=report.update)
    if as_json:
        print_json(result)
        return
    echo(f"{result['architecture']}, {result['parameters']:,} parameters as {', '.join(result['types'])}")
    echo(f"wrote {output} ({result['output_bytes'] / 1e6:,.1f} MB) in {result['seconds']:.1f} s")
