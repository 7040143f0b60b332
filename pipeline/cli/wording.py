"""Messages of the library in the words of the command line: options for arguments, the program as it is called."""

import re

from pipeline.cli.program import program

OPTIONS = {
    "n_ctx": "--ctx",
    "importance_matrix": "--imatrix",
    "folder": "-o",
    "plan_file": "--plan",
    "top_k": "--top-k",
}
"""What arguments are called here, where it is not their own name."""
ARGUMENT = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")
COMMAND = re.compile(
    r"(?<![\w/.-])surgery (?=(?:calibrate|compare|convert|eval|inspect|latent|operate|quantize|tasks)\b)"
)


def spoken(message: str) -> str:
    """The message as whoever typed a command understands it."""
    return COMMAND.sub(lambda match: f"{program()} ", ARGUMENT.sub(_option, message))


def _option(match: re.Match[str]) -> str:
    name, value = match.groups()
    option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
    return option if value is None else f"{option} {value}"
