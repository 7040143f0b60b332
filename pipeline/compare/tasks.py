"""The tasks of a study: all models are asked the same questions, and every reply is in the ledger as soon as it is there.

Which questions there are is found by a rehearsal in the source's vocabulary, which every cell shares. What the replies
come to is found by another, with replies in place of the models: a worker need neither have the harness nor its data.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np

from native.completion import Prompt
from native.likelihood import common_length
from native.model import ContextOptions
from pipeline.compare.cell import replies_key
from pipeline.compare.ledger import Ledger, Run
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.json_text import sha256_of
from pipeline.revision import revision
from pipeline.tasks.choices import TaskChoices
from pipeline.tasks.items import Measured
from pipeline.tasks.session import Question, Rehearsal, Session
from pipeline.tasks.suites import Suites, Warn, load_suites


class StudyTasks:
    """What is asked of the source, which `session` has, and of every cell. Get it from `open_tasks`."""

    def __init__(self, suites: Suites, model: GGUFModel, session: Session, warn: Warn) -> None:
        self.session, self._suites, self._model = session, suites, model
        rehearsal = Rehearsal(session, {})
        foreseen = suites.ask(model.path, rehearsal, warn=warn)
        self.questions = rehearsal.missing
        self._columns = {(m.task, m.metric) for m in foreseen}
        items = [[m.task, m.metric, m.names] for m in foreseen]
        self._stamp = sha256_of([revision("tasks"), suites.made_of, items, [key.hex() for key in self.questions]])

    def missing(self, ledger: Ledger, key: str) -> list[Question]:
        """The questions that the run of this key has not answered."""
        known = ledger.replies(replies_key(key))
        return [question for digest, question in self.questions.items() if digest not in known]

    def score(self, ledger: Ledger, key: str) -> None:
        """Write down what the replies of a run come to, unless that is there. All questions must be answered."""
        run = ledger.run(replies_key(key))
        kept = {(one["task"], one["metric"]): one for one in (run.facts or {}).get("measured", [])}
        if all(kept.get(column, {}).get("stamp") == self._stamp for column in self._columns):
            return
        rehearsal = Rehearsal(self.session, ledger.replies(run.key))
        for measured in self._suites.ask(self._model.path, rehearsal):
            kept[measured.task, measured.metric] = asdict(measured) | {"stamp": self._stamp}
        if rehearsal.missing:
            raise SurgeryError(
                "a task's questions depend on the replies to others, which a study cannot do; leave it out"
            )
        ledger.set_run(Run(run.key, "done", None, {"measured": [*kept.values()]}))

    def ask_source(self, ledger: Ledger, key: str, advance: Callable[[int], None]) -> None:
        """Put to the source whatever it has not answered, and write down what that comes to; tell how many it did."""
        for replies in self.session.keyed_replies(self.missing(ledger, key)):
            ledger.add_replies(replies_key(key), replies)
            advance(len(replies))
        self.score(ledger, key)

    def tokens_a_question(self) -> float:
        return self.tokens() / len(self.questions) if self.questions else 0.0

    def tokens(self) -> int:
        """How many tokens a model reads to answer all questions, where what begins alike is read once."""
        read = sorted((_read(question) for question in self.questions.values()), key=lambda tokens: tokens.tolist())
        return sum(map(len, read)) - sum(common_length(one, other) for one, other in pairwise(read))

    def seconds(self, token_seconds: float) -> float:
        """About how long a model takes, from one question of middling length; `token_seconds`: of a token it writes."""
        if not self.questions:
            return 0.0
        middling = sorted(self.questions.values(), key=lambda question: len(_read(question)))[len(self.questions) // 2]
        asked = replace(middling, limit=1) if isinstance(middling, Prompt) else middling
        started = time.perf_counter()
        for _ in self.session.replies([asked]):
            pass
        reading = (time.perf_counter() - started) / len(_read(middling)) * self.tokens()
        return reading + token_seconds * sum(q.limit for q in self.questions.values() if isinstance(q, Prompt))


def _read(question: Question) -> np.ndarray:
    """The tokens that are decoded before the last logits that a question needs."""
    return question.tokens if isinstance(question, Prompt) else np.r_[question.context, question.target[:-1]]


@contextmanager
def open_tasks(
    model: GGUFModel, choices: TaskChoices, *, threads: int = 0, warn: Warn = lambda message: None
) -> Iterator[StudyTasks | None]:
    """What `choices` ask of `model` and of all that is made of it; None if that is nothing.

    Raises as `load_suites` does, and UsageError for a text that is longer than the model's context.
    """
    if not choices:
        yield None
        return
    suites = load_suites(choices)
    with Session(model.path, ContextOptions(threads=threads)) as session:
        yield StudyTasks(suites, model, session, warn)


def measured_of(ledger: Ledger, key: str) -> list[Measured]:
    """What the replies of the run of this key came to, whatever it was asked in whichever run of the study."""
    facts = ledger.run(replies_key(key)).facts or {}
    return [_measured(one) for one in facts.get("measured", [])]


def _measured(kept: dict[str, Any]) -> Measured:
    return Measured(
        **{name: kept[name] for name in ("task", "metric", "total", "higher_is_better")},
        values=tuple(kept["values"]),
        names=tuple(kept["names"]),
    )
