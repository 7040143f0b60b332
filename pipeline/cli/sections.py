"""A command whose `--help` has its options under headings, those that every command has last."""

from collections.abc import Mapping
from typing import Any

import click

COMMON = "Output and running"
WIDEST = 30  # columns, as click has it: options that are longer stand on lines of their own


class SectionedCommand(click.Command):
    """`sections`: by its heading, the parameters of each section as Python names them, separated by blanks.

    All others follow under COMMON. Raises ValueError for a parameter that the command does not have, or has twice.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.sections = {title: names.split() for title, names in sections.items()}
        named = sorted(name for names in self.sections.values() for name in names)
        if named != sorted({str(param.name) for param in self.params} & set(named)):
            raise ValueError(f"{self.name}: sections name each option once, and no others; they name {named}")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {str(option.name): record for option in options if (record := option.get_help_record(ctx))}
        width = max(len(first) for first, _ in records.values() if len(first) <= WIDEST)
        sections = [(title, [records.pop(name) for name in names]) for title, names in self.sections.items()]
        for title, rows in [*sections, (COMMON, list(records.values()))]:
            with formatter.section(title):
                formatter.write_dl([(first.ljust(width), text) for first, text in rows], col_max=WIDEST)
