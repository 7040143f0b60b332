"""What all commands have in common: options under headings in `--help`, and arguments that no command can mean."""

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import click

from pipeline.cli.parameters import parameter_name
from pipeline.errors import UsageError

COMMON = "Output and running"
WIDEST = 30  # columns, as click has it: options that are longer stand on lines of their own
OUTPUTS = ("output", "imatrix_output", "save_plan")
"""Parameters that name files to write."""
INPUTS = ("text", "texts", "calibration", "imatrix")
"""Parameters that name files to read, but for models, which `pipeline.files.output_file` guards."""


class SurgeryCommand(click.Command):
    """`sections`: by its heading, the parameters of each section as Python names them, separated by blanks.

    All others follow under COMMON. Raises ValueError for a parameter that the command does not have, or has twice.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sections = {title: names.split() for title, names in (sections or {}).items()}
        named = sorted(name for names in self.sections.values() for name in names)
        if named != sorted({str(param.name) for param in self.params} & set(named)):
            raise ValueError(f"{self.name}: sections name each option once, and no others; they name {named}")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {str(option.name): record for option in options if (record := option.get_help_record(ctx))}
        width = max(len(first) for first, _ in records.values() if len(first) <= WIDEST)
        sections = [(title, [records.pop(name) for name in names]) for title, names in self.sections.items()]
        for title, rows in [*sections, (COMMON if sections else "Options", list(records.values()))]:
            with formatter.section(title):
                formatter.write_dl([(first.ljust(width), text) for first, text in rows], col_max=WIDEST)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's. Raises UsageError for an empty text or name, and for an output that is also an input."""
        if ctx.resilient_parsing:  # for completion
            return super().parse_args(ctx, args)
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            value = given.get(str(param.name))
            if "" in (value if isinstance(value, list | tuple) else (value,)):
                raise UsageError(f"{parameter_name(param)}: is empty; give it something, or leave it out")
        rest = super().parse_args(ctx, args)
        for output, other in product(OUTPUTS, (*INPUTS, *OUTPUTS)):
            path, value = ctx.params.get(output), ctx.params.get(other)
            if path and value and output != other and _leads_to(path, value):
                option = f"--{other.removesuffix('s').replace('_', '-')}"
                raise UsageError(f"{path}: is given as {option}, too; name another output")
        return rest


def _leads_to(path: Path, value: Any) -> bool:
    """Whether `value`, a name, several with commas between, or a tuple of them, has one that leads where `path` does."""
    names = [str(name) for name in (value if isinstance(value, tuple) else (value,))]
    parts = [part for name in names for part in (name, *name.split(","))]
    return any(os.path.realpath(path) == os.path.realpath(Path(part).expanduser()) for part in parts)
