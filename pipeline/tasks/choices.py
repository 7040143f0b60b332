"""Which tasks, and how they are asked: declared once for `surgery tasks`, for grids and for their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.choices import choice, choices_of
from pipeline.errors import UsageError
from pipeline.tasks.passkey import DEPTHS, NAME, NEEDLES, OWNERS, PLACES

_COUNT = "a whole number above 0"
_OF_THE_TOOL = "as llama.cpp's perplexity tool has it, with its rules."


@dataclass(frozen=True)
class TaskChoices:
    """Tasks of lm-evaluation-harness, passkeys, and files of llama.cpp's perplexity tool; nothing by default."""

    tasks: Sequence[str] = choice(
        (),
        str,
        "Tasks of lm-evaluation-harness, such as piqa,arc_easy, or YAML files of tasks; and passkey, which needs no"
        " data: is a number found in a long text?",
    )
    hellaswag: str | None = choice(None, str, f"HellaSwag {_OF_THE_TOOL}", metavar="FILE")
    winogrande: str | None = choice(None, str, f"WinoGrande {_OF_THE_TOOL}", metavar="FILE")
    multiple_choice: str | None = choice(None, str, f"Multiple choice {_OF_THE_TOOL}", metavar="FILE")
    limit: int | None = choice(None, int, "Items of each task.  [default: all]", expected=_COUNT, low=1)
    num_fewshot: int | None = choice(
        None, int, "Examples before each item.  [default: the task's]", expected="a whole number from 0 on", low=0
    )
    include_path: str | None = choice(None, str, "A folder with more tasks as YAML files.", metavar="FOLDER")
    chat_template: bool = choice(False, bool, "Ask in the model's chat template.", expected="true or false")
    depths: Sequence[int] = choice(
        DEPTHS, int, "For the task passkey: how many tokens its texts have.", expected=_COUNT, low=1
    )
    places: Sequence[float] = choice(
        PLACES, float, "For passkey: where the number stands.", expected="a share from 0 to 1", low=0, high=1
    )
    needles: Sequence[int] = choice(
        NEEDLES,
        int,
        "For passkey: how many numbers a text has, of which one is asked for.",
        expected=f"a whole number from 1 to {len(OWNERS)}",
        low=1,
        high=len(OWNERS),
    )
    repeats: int = choice(5, int, "For passkey: questions a depth and place.", expected=_COUNT, low=1)

    @property
    def files(self) -> dict[str, str]:
        """The files of llama.cpp's tool that were named, by their kind."""
        kinds = ("hellaswag", "winogrande", "multiple_choice")
        return {kind: path for kind in kinds if (path := getattr(self, kind)) is not None}

    def __bool__(self) -> bool:
        """Whether anything is asked at all."""
        return bool(self.tasks or self.files)

    def check(self) -> None:
        """Raise UsageError for a value that a choice cannot have, or that nothing asked for would use."""
        for name, (declared, default) in choices_of(TaskChoices).items():
            value = getattr(self, name)
            several = isinstance(default, tuple)
            if several and (isinstance(value, str) or not isinstance(value, Sequence)):
                raise UsageError.of(name, value, "expected a list")
            if several and (twice := [one for one in value if list(value).count(one) > 1]):
                raise UsageError.of(
                    name, twice[0], "is asked twice; an item that counts twice makes intervals too narrow"
                )
            for one in value if several else [] if value is None and default is None else [value]:
                if not declared.allows(one):
                    raise UsageError.of(name, one, f"expected {declared.expected}")
            if (tuple(value) if several else value) != default and (whose := self._unused(name)):
                raise UsageError(f"`{name}`: is for {whose}; ask for one in `tasks`, or leave it out", argument=name)

    def _unused(self, name: str) -> str | None:
        """Whose a choice is, where nothing of the kind is asked for."""
        harness = any(task != NAME for task in self.tasks)
        if name in ("depths", "places", "needles", "repeats") and NAME not in self.tasks:
            return f"the task {NAME}"
        if name in ("num_fewshot", "include_path", "chat_template") and not harness:
            return "tasks of lm-evaluation-harness"
        return "tasks that have items, and files" if name == "limit" and not (harness or self.files) else None


def chosen_tasks(plan: TaskChoices) -> TaskChoices:
    """What a plan that is more than this, such as a grid, says of tasks. Raises UsageError as `check` does."""
    plan.check()
    values: dict[str, Any] = {}
    for name in choices_of(TaskChoices):
        value = getattr(plan, name)
        values[name] = tuple(value) if isinstance(value, list) else value
    return TaskChoices(**values)
