"""A model that is loaded once, in a process of its own, and asked again and again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

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

    def answers(self, requests: Sequence[Continuation]) -> Iterator[dict[int, Answer]]:
        """How likely each of `requests` is, by its number, round by round."""
        if requests:
            for scored in self._ask(Score(requests)):
                yield {number: Answer(found.total, found.greedy) for number, found in scored.likelihoods.items()}

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, str]]:
        """What follows each of `prompts` by their number, group by group."""
        if prompts:
            yield from self._ask(Complete(prompts))

    def render(self, messages: list[dict[str, str]], *, answering: bool = True) -> str:
        """A conversation in the model's chat template; `answering`: it goes on with an answer, else where it ends."""
        return next(iter([*self._ask(Render(messages, answering))]))
