"""The options of tasks, made of what `TaskChoices` declares; each is None where it was not given."""

from collections.abc import Mapping
from typing import Any

import click

from pipeline.choices import choices_of
from pipeline.cli.choices import choice_type, given_choices
from pipeline.cli.options import list_option
from pipeline.cli.wording import spoken
from pipeline.tasks.choices import TaskChoices


def task_options(command: Any) -> Any:
    """An option for every choice of tasks."""
    for name, (choice, default) in reversed(choices_of(TaskChoices).items()):
        option, kind = f"--{name.replace('_', '-')}", choice_type(choice)
        several = isinstance(default, tuple)
        shown = ",".join(f"{value:g}" for value in default) if several else default
        text = spoken(choice.help) + (f"  [default: {shown}]" if shown else "")
        if several:
            command = list_option(option, kind, text)(command)
        elif choice.kind is bool:
            command = click.option(option, is_flag=True, default=None, help=text)(command)
        else:
            command = click.option(option, type=kind, metavar=choice.metavar, help=text)(command)
    return command


def chosen_tasks(options: Mapping[str, Any]) -> TaskChoices:
    return TaskChoices(**given_choices(options, choices_of(TaskChoices)))
