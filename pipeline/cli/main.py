"""`surgery`: the group of commands, and the edge where exceptions become one line and an exit code."""

import errno
import importlib
import signal
import sys
from types import FrameType
from typing import Any

import click

from native.errors import NativeError
from pipeline.errors import SurgeryError

COMMANDS = {
    "calibrate": "Measure what a model's attention sees, over a text.",
    "operate": "Replace attention projections by low-rank reconstructions.",
    "latent": "Convert to latent attention: a smaller KV cache.",
    "convert": "Turn a Hugging Face checkpoint into a GGUF file.",
    "quantize": "Quantise a model with llama.cpp's quantiser.",
    "run": "Answer a prompt, or chat; --beside compares two models.",
    "eval": "Perplexity, and KL divergence to a base.",
    "compare": "Measure a grid of surgeries and quantisations.",
    "report": "A study as one HTML page, with tables and pictures.",
    "inspect": "Architecture, tensors, and ranks that the variance needs.",
}


class SurgeryGroup(click.Group):
    """Imports a command's module when it is asked for, so that --help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pipeline.cli.{name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SurgeryError, NativeError) as error:
            click.echo(f"surgery: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            click.echo(f"surgery: {error.filename or 'system'}: {error.strerror or error}", err=True)
            ctx.exit(1)
        except UnicodeError as error:
            click.echo(f"surgery: a path, prompt or text is not UTF-8: {error}", err=True)
            ctx.exit(1)


@click.group(cls=SurgeryGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="surgery")
def cli() -> None:
    """How much of a transformer's attention is redundant?

    Replaces the query, key and value projections of a GGUF model by low-rank reconstructions, quantises the result,
    runs it with llama.cpp, and measures what was lost. MODEL is a GGUF file, or smollm2-135m, which comes along;
    for operate and convert also a Hugging Face checkpoint, as a folder or as org/name of the hub.
    """


def main() -> None:
    """The console script. SIGTERM and SIGHUP clean up like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, stop)
    sys.exit(cli(standalone_mode=True))
