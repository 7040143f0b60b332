"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Any

import click

model_argument = click.argument("model")
output_option = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The GGUF file to write."
)
force_option = click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
threads_option = click.option(
    "--threads", default=0, type=click.IntRange(0), help="Processors to use; 0 for all.", show_default=True
)


def cache_type_options(command: Any) -> Any:
    """--cache-type-k and --cache-type-v. The names stand here too, so that --help need not load llama.cpp."""
    names = click.Choice(["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"], case_sensitive=False)
    for side in "vk":
        command = click.option(
            f"--cache-type-{side}",
            default="f16",
            type=names,
            show_default=True,
            help=f"Type of the KV cache's {side.upper()}.",
        )(command)
    return command
