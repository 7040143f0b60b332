"""A model that is loaded once, in a process of its own, and asked again and again."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from native.answering import Complete, ModelFacts, Render, Request, Score, Tokenize, answer_requests
from native.completion import Prompt
from native.isolated import isolated
from native.likelihood import Continuation
from native.model import ContextOptions


@dataclass(frozen=True)
class Answer:
    """log p of a whole continuation in nats, and whether it is what the model would say."""

    total: float
    greedy: bool


Question = Continuation | Prompt
Reply = Answer | str
"""To a Continuation and to a Prompt."""


def question_key(question: Question) -> bytes:
    """SHA-256 of all that a question consists of: a reply belongs to it, and to whom it was put."""
    if isinstance(question, Continuation):
        return _digest(question.context, question.target)
    p = question
    return _digest(p.tokens, p.limit, p.until, p.temperature, p.top_k, p.top_p, p.seed)


def _digest(*parts: object) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.asarray(part, np.int32).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        digest.update(b"|")
    return digest.digest()


class Session:
    """Ask a model; a context manager. Its methods raise NativeError when llama.cpp cannot load or run the model."""

    def __init__(self, path: Path, options: ContextOptions) -> None:
        self._conversation = isolated(answer_requests, str(path), options)
        self.facts: ModelFacts = next(self._conversation)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._conversation.close()

    def _ask(self, request: Request) -> Iterator[Any]:
        part = self._conversation.send(request)
        while part is not None:
            yield part
            part = next(self._conversation)

    def tokenize(self, texts: Sequence[str], *, special: bool, whole: bool = False) -> list[np.ndarray]:
        """Token ids of each text, int32 (n,); `special`: a control token's text stands for that token.

        `whole`: with BOS where the vocabulary asks for it.
        """
        return next(iter([*self._ask(Tokenize(texts, special, whole))]))

    def answers(self, continuations: Sequence[Continuation]) -> Iterator[dict[int, Answer]]:
        """How likely each of `continuations` is, by its number, round by round."""
        return cast("Iterator[dict[int, Answer]]", self.replies(continuations))

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, str]]:
        """What follows each of `prompts` by their number, group by group."""
        return cast("Iterator[dict[int, str]]", self.replies(prompts))

    def replies(self, questions: Sequence[Question]) -> Iterator[dict[int, Reply]]:
        """The replies to all of `questions` by their number, part by part: what begins alike is decoded once."""
        likelihoods = {i: question for i, question in enumerate(questions) if isinstance(question, Continuation)}
        prompts = {i: question for i, question in enumerate(questions) if isinstance(question, Prompt)}
        numbers = [*likelihoods]
        for scored in self._ask(Score([*likelihoods.values()])) if likelihoods else ():
            yield {numbers[i]: Answer(found.total, found.greedy) for i, found in scored.likelihoods.items()}
        numbers = [*prompts]
        for group in self._ask(Complete([*prompts.values()])) if prompts else ():
            yield {numbers[i]: text for i, text in group.items()}

    def keyed_replies(self, questions: Sequence[Question]) -> Iterator[dict[bytes, Reply]]:
        """As `replies`, by the questions' keys."""
        for part in self.replies(questions):
            yield {question_key(questions[number]): reply for number, reply in part.items()}

    def render(self, messages: list[dict[str, str]], *, answering: bool = True) -> str:
        """A conversation in the model's chat template; `answering`: it goes on with an answer, else where it ends."""
        return next(iter([*self._ask(Render(messages, answering))]))


class Rehearsal(Session):
    """A session that puts no questions: it gives the replies that are known, and notes what it would have to ask.

    Where none is known, a continuation is worth 0 nats and a prompt's text is empty.
    """

    def __init__(self, session: Session, known: Mapping[bytes, Reply]) -> None:
        self._conversation, self.facts = session._conversation, session.facts
        self._known = known
        self.missing: dict[bytes, Question] = {}

    def replies(self, questions: Sequence[Question]) -> Iterator[dict[int, Reply]]:
        found: dict[int, Reply] = {}
        for number, question in enumerate(questions):
            key = question_key(question)
            if key not in self._known:
                self.missing[key] = question
            found[number] = self._known.get(key, "" if isinstance(question, Prompt) else Answer(0.0, False))
        if found:
            yield found
