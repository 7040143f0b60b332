"""`surgery`: the group of commands, and the edge where exceptions become one line and an exit code."""

import errno
import importlib
import io
import os
import shlex
import signal
import sys
import traceback
import warnings
from types import FrameType
from typing import Any

import click

from native.errors import NativeError
from pipeline.cli.parameters import parameter_name
from pipeline.cli.program import program
from pipeline.cli.wording import spoken
from pipeline.errors import SurgeryError, UsageError, suggestion
from pipeline.visible import visible

SECTIONS = {
    "Make a model": {
        "operate": "Replace attention projections by low-rank reconstructions.",
        "latent": "Convert to latent attention: a smaller KV cache.",
        "quantize": "Quantise a model with llama.cpp's quantiser.",
        "convert": "Turn a Hugging Face checkpoint into a GGUF file.",
        "calibrate": "Measure what a model's attention sees, over a text.",
    },
    "Measure what was lost": {
        "eval": "Perplexity, and KL divergence to a base.",
        "tasks": "What a model can still do: benchmarks, beside its base.",
        "compare": "Measure a grid of surgeries and quantisations.",
    },
    "Look": {
        "run": "Answer a prompt, or chat; --beside compares two models.",
        "inspect": "Architecture, tensors, and ranks that the variance needs.",
        "report": "A study as one HTML page, with tables and pictures.",
    },
}
COMMANDS = {name: summary for commands in SECTIONS.values() for name, summary in commands.items()}
EXAMPLES = {
    "operate": "operate smollm2-135m -o out.gguf --targets kv --metric attention --budget 0.56",
    "latent": "latent smollm2-135m -o latent.gguf --cache 0.5",
    "quantize": "quantize out.gguf out-q4.gguf Q4_K_M",
    "convert": "convert TinyLlama/TinyLlama-1.1B-Chat-v1.0 tiny.gguf",
    "calibrate": "calibrate smollm2-135m --text book.txt",
    "eval": "eval out.gguf --base smollm2-135m --text book.txt --chunks 8",
    "compare": "compare smollm2-135m -o study --preset quick --chunks 8",
    "tasks": "tasks out.gguf --base smollm2-135m --tasks passkey",
    "run": "run out.gguf --beside smollm2-135m --prompt 'What is machine learning?'",
    "inspect": "inspect smollm2-135m --spectrum",
    "report": "report study",
}
"""What to type to see a command at work."""


LONGEST_COMMAND = 300  # characters of it in a message


class SurgeryGroup(click.Group):
    """Imports a command's module when it is asked for, so that --help stays instant; what goes wrong is one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"{args[0]}: no such command{suggestion(args[0], COMMANDS)}; see {program()} --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pipeline.cli.{name}").command
        command.epilog = f"\b\nExample:\n  {program()} {EXAMPLES[name]}"
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # here, as click would print an empty line
            raise click.Abort from None

    def main(self, *args: Any, **options: Any) -> Any:
        """As click's own in standalone mode, but for the messages: whatever goes wrong, one line, and no warning.

        With SURGERY_DEBUG=1 the line has its traceback, and all that is known of a process that died; and warnings.
        """
        debugging = os.environ.get("SURGERY_DEBUG", "0") not in ("", "0")
        try:
            with warnings.catch_warnings():
                if not debugging and not sys.warnoptions:
                    warnings.simplefilter("ignore")
                code = super().main(*args, **options | {"standalone_mode": False})
        except Exception as error:
            code = tell(
                error,
                shlex.join(map(str, (args[0] if args else options.get("args")) or sys.argv[1:]))[:LONGEST_COMMAND],
            )
            if debugging:
                explain(error)
        sys.exit(code)


def tell(error: Exception, asked: str) -> int:
    """Say in one line what went wrong; the exit code. `asked` is the command line, for what nobody foresaw."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.UsageError():
            return complain(usage_line(error), error.exit_code)
        case SurgeryError() | NativeError():
            return complain(str(error), error.exit_code)
        case click.Abort():
            click.echo("\r" if sys.stderr.isatty() else "", nl=False, err=True)  # noqa: TID251  # over the terminal's ^C
            return complain("interrupted", 128 + signal.SIGINT)
        case OSError():
            return complain(f"{_what_failed(error)}: {error.strerror or error}", 1)
        case UnicodeError():
            return complain(f"a path, prompt or text is not UTF-8: {error}", 1)
        case MemoryError():
            return complain(f"{asked}: too little memory", 1)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return complain(f"{asked}: failed in a way that nobody foresaw ({what}); SURGERY_DEBUG=1 shows where", 1)


def explain(error: BaseException) -> None:
    """All that is known of an error, on stderr, for whoever looks for a fault."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, NativeError):
        text += error.details
    click.echo(visible(text, keep="\n\t"), err=True)  # noqa: TID251  # as in `complain`


def complain(message: str, code: int) -> int:
    """Print `message` as one line on stderr; the exit code is `code`."""
    click.echo(f"surgery: {visible(spoken(message))}", err=True)  # noqa: TID251  # what `echo` rests on takes long to import
    return code


def usage_line(error: click.UsageError) -> str:
    """What click found wrong, as one line: which option or argument, what was expected, and where to look."""
    message = error.format_message()
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param:
        message = f"{parameter_name(error.param)} {error.message}"
    line = " ".join(message.split()).rstrip(".")
    if error.ctx is None:
        return line
    _, _, command = error.ctx.command_path.partition(error.ctx.find_root().command_path)
    return f"{line}; see {program()}{command} --help"


def _what_failed(error: OSError) -> str:
    """What an error is about: a file, or standard output, as all other files that are written name themselves."""
    if error.filename or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return str(error.filename or "system")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what waits to be written would fail once more at the end
    return "standard output: cannot be written"


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from pipeline.cli.version import show_version

        show_version(ctx)


@click.group(cls=SurgeryGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and what it computes with.",
)
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

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without some character is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, stop)
    cli()
