"""Command line options made of what a plan declares, see `pipeline.choices`."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from pipeline.choices import Choice, choices_of
from pipeline.cli import parameters
from pipeline.cli.options import calibration_option
from pipeline.cli.wording import spoken
from pipeline.errors import UsageError
from pipeline.operation.plan import Plan

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # generic from click 8.4 on
    ParamType = click.ParamType

LONGEST_NAMES = 15  # columns: more stand in an option's help, and not beside it


class NumberType(ParamType):
    """The numbers that a `Choice` allows."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.name = {int: "integer", float: "float"}[choice.kind]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            converted = self.choice.kind(value)
        except ValueError:
            converted = None
        if not self.choice.allows(converted):
            raise UsageError(f"{parameters.parameter_name(param)} {value}: expected {self.choice.expectation}")
        return converted


def choice_type(choice: Choice) -> ParamType:
    """What click knows a choice as; other texts than names are the plan's to check."""
    if choice.kind is bool:
        return click.BOOL
    if choice.names:
        return parameters.Choice(choice.names)
    return click.STRING if choice.kind is str else NumberType(choice)


def plan_options(plan: type, *, but: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """An option for every choice of a plan, except those that are named."""

    def decorate(command: Any) -> Any:
        for name in reversed(choices_of(plan)):
            if name not in but:
                command = plan_option(plan, name)(command)
        return command

    return decorate


def plan_option(plan: type, name: str) -> Callable[[Any], Any]:
    """The option for one choice of a plan."""
    choice, default = choices_of(plan)[name]
    metavar, text = choice.metavar, choice.help
    if len("|".join(choice.names)) > LONGEST_NAMES:
        metavar = name.rpartition("_")[2].upper()
        text += "" if all(known in text for known in choice.names) else f" One of {', '.join(choice.names)}."
    return click.option(
        f"--{name.replace('_', '-')}",
        default=default,
        show_default=default is not None,
        type=choice_type(choice),
        metavar=metavar,
        help=spoken(text),
    )


def metric_options(command: Any) -> Any:
    """--metric and --calibration."""
    calibration = calibration_option(
        "Statistics that surgery calibrate wrote, or a text to calibrate on, for a metric other than weights."
    )
    return plan_option(Plan, "metric")(calibration(command))


def given_choices(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of `names` that were given."""
    return {name: options[name] for name in names if options[name] is not None}
