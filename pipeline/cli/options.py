"""Options and arguments that several commands share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.cache_types import CACHE_TYPES
from pipeline.cli.parameters import Choice, WholeNumber, parameter_name
from pipeline.errors import UsageError
from pipeline.inputs.texts import AUTO_TEXT, EMBEDDED_TEXTS, EVALUATION_TEXT

model_argument = click.argument("model")
output_option = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The GGUF file to write."
)
force_option = click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
MOST_THREADS = 512  # as native.model has it; it stands here too, so that --help need not load llama.cpp
threads_option = click.option(
    "--threads",
    default=0,
    type=WholeNumber(0, MOST_THREADS),
    help="Processors to use; 0 for all.",
    show_default=True,
)


def _usable_gpu_layers(ctx: click.Context, param: click.Parameter, layers: int) -> int:
    """Raises UsageError for layers on a GPU where llama.cpp would leave all on the processor, without a word."""
    if layers:
        from native.build import uses_gpu

        if not uses_gpu():
            raise UsageError(f"--gpu-layers {layers}: llama.cpp was built without a GPU, or finds none; leave it out")
    return layers


gpu_layers_option = click.option(
    "--gpu-layers",
    default=0,
    show_default=True,
    type=WholeNumber(-1),
    callback=_usable_gpu_layers,
    help="Layers to put on a GPU; -1 for all.",
)


texts_option = click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="TEXT",
    help=f"What to measure on: a UTF-8 text file, or {', '.join(EMBEDDED_TEXTS)}; give it several times for several"
    f" texts.  [default: {EVALUATION_TEXT}]",
)


def cache_type_options(command: Any) -> Any:
    """--cache-type-k and --cache-type-v."""
    for side, known in (("v", ", one of the same."), ("k", f": {', '.join(CACHE_TYPES)}.")):
        command = click.option(
            f"--cache-type-{side}",
            default="f16",
            type=Choice(CACHE_TYPES, case_sensitive=False),
            metavar="TYPE",
            show_default=True,
            help=f"Type of the KV cache's {side.upper()}{known}",
        )(command)
    return command


def calibration_option(text: str) -> Callable[[Any], Any]:
    """--calibration, with `text` as its help; see `pipeline.calibration.obtain`."""
    return click.option("--calibration", metavar="STATS_OR_TEXT", default=AUTO_TEXT, show_default=True, help=text)


def refuse_idle_calibration(metric: str) -> None:
    """Raise UsageError when --calibration was given for a metric that does without."""
    if metric == "weights":
        refuse_idle(["calibration"], "is used by --metric inputs and --metric attention alone; add one of them")


def given(option: str) -> bool:
    """Whether the user wrote this option of the running command."""
    return click.get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE


def refuse_idle(options: Iterable[str], reason: str) -> None:
    """Raise UsageError for the first of these options of the running command that was given: it would change nothing."""
    names = {str(param.name): parameter_name(param) for param in click.get_current_context().command.params}
    for option in options:
        if given(option):
            raise UsageError(f"{names[option]}: {reason}")


def list_option(name: str, kind: Any, text: str) -> Callable[[Any], Any]:
    """An option of several values, separated by commas or blanks."""
    kind = click.types.convert_type(kind)

    def split(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        if not (parts := value.replace(",", " ").split()):
            raise UsageError(f"{name}: is empty; expected values with commas between")
        return tuple(kind.convert(part, param, ctx) for part in parts)

    return click.option(name, callback=split, metavar="LIST", help=text)
