"""A model that is loaded once, in a process of its own, and asked again and again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from native.answering import Complete, ModelFacts, Render, Request, Score, Tokenize, answer_requests
from native.completion import Prompt
from native.isolated import isolated
from native.likelihood import Continuation, Scored
from native.model import ContextOptions


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

    def tokenize(self, texts: Sequence[str], *, special: bool) -> list[np.ndarray]:
        """Token ids of each text, int32 (n,), without BOS; `special`: a control token's text stands for that token."""
        return next(iter([*self._ask(Tokenize(texts, special))]))

    def score(self, requests: Sequence[Continuation]) -> Iterator[Scored]:
        """The likelihoods of `requests` by their number, round by round."""
        yield from self._ask(Score(requests))

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[dict[int, str]]:
        """What follows each of `prompts` by their number, group by group."""
        yield from self._ask(Complete(prompts))

    def render(self, messages: list[dict[str, str]], *, answering: bool = True) -> str:
        """A conversation in the model's chat template; `answering`: it goes on with an answer, else where it ends."""
        return next(iter([*self._ask(Render(messages, answering))]))
