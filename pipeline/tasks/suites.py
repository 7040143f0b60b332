"""Everything that is to be asked, loaded once for all models: tasks of the harness, passkeys, and llama.cpp's files."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import SurgeryError, UsageError
from pipeline.progress import Progress, silent
from pipeline.tasks.choices import TaskChoices
from pipeline.tasks.items import Measured
from pipeline.tasks.llama_files import READERS, ask_file
from pipeline.tasks.passkey import NAME, PasskeyOptions, ask_passkeys
from pipeline.tasks.session import Session

Warn = Callable[[str], None]
Suite = Callable[[Path, Session, Progress, Warn], list[Measured]]
"""Asks the model at a path, which a session has, everything of one kind."""


@dataclass(frozen=True)
class Suites:
    """`made_of`, as JSON, decides with the items' names what the replies come to."""

    suites: tuple[Suite, ...]
    made_of: list[Any]

    def ask(
        self, path: Path, session: Session, progress: Progress = silent, warn: Warn = lambda message: None
    ) -> list[Measured]:
        """Ask the model everything. Raises SurgeryError for what cannot be scored, NativeError as the session does."""
        return [measured for suite in self.suites for measured in suite(path, session, progress, warn)]


def load_suites(choices: TaskChoices, *, seed: int = 0, max_length: int | None = None) -> Suites:
    """What `choices` ask for; `seed` is for passkeys, `max_length` the harness' longest context in tokens.

    Raises UsageError for a task or a file that is not there, SurgeryError for data that cannot be used.
    """
    choices.check()
    made_of: list[Any] = [asdict(choices) | {"seed": seed, "max_length": max_length}]
    suites: list[Suite] = []
    if NAME in choices.tasks:
        suites.append(_passkeys(choices, seed))
    if tasks := tuple(dict.fromkeys(task for task in choices.tasks if task != NAME)):
        suites.append(_harness(tasks, choices, max_length, made_of))
    for kind, name in choices.files.items():
        file = READERS[kind](Path(name), choices.limit)
        made_of.append(hashlib.sha256(Path(name).read_bytes()).hexdigest())
        suites.append(lambda path, session, progress, warn, file=file: ask_file(session, file, progress))  # type: ignore[misc]
    if not suites:
        raise UsageError("`tasks`: nothing is asked; name some, such as passkey or piqa,arc_easy", argument="tasks")
    return Suites(tuple(suites), made_of)


def _passkeys(choices: TaskChoices, seed: int) -> Suite:
    options = PasskeyOptions(
        tuple(choices.depths), tuple(choices.places), tuple(choices.needles), choices.repeats, seed
    )
    return lambda path, session, progress, warn: ask_passkeys(session, options, progress)


def _harness(tasks: tuple[str, ...], choices: TaskChoices, max_length: int | None, made_of: list[Any]) -> Suite:
    if find_spec("lm_eval") is None:
        raise SurgeryError(
            f"`tasks={', '.join(tasks)}`: needs lm-evaluation-harness; run: pip install 'surgery[tasks]'"
        )
    import lm_eval

    from pipeline.tasks.evaluate import HarnessTasks
    from pipeline.tasks.harness import SurgeryLM

    made_of.append(lm_eval.__version__)
    loaded = HarnessTasks(tasks, choices)

    def ask(path: Path, session: Session, progress: Progress, warn: Warn) -> list[Measured]:
        asked = SurgeryLM(str(path), max_length=max_length, session=session)
        measured = loaded.evaluate(asked, progress)
        if asked.truncated:
            warn(
                f"{path}: {asked.truncated:,} requests are longer than the context of {asked.max_length} tokens"
                " and lost their beginning"
            )
        return measured

    return ask
