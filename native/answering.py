"""A loaded model that answers requests of several kinds, for `isolated`: what an evaluation harness asks of a model."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from native.chat_template import render_chat
from native.completion import Prompt, complete
from native.likelihood import Continuation, score_continuations
from native.model import ContextOptions, load_model


@dataclass(frozen=True)
class ModelFacts:
    """What a harness has to know: the context that the model was made for, and its special tokens (-1: none)."""

    n_ctx_train: int
    bos: int
    eos: int
    adds_bos: bool
    chat_template: str | None


@dataclass(frozen=True)
class Tokenize:
    """Answered by one list: token ids of each text, int32 (n,), see `Model.tokenize`."""

    texts: Sequence[str]
    special: bool
    whole: bool


@dataclass(frozen=True)
class Score:
    """Answered by `Scored`, round by round."""

    requests: Sequence[Continuation]


@dataclass(frozen=True)
class Complete:
    """Answered by texts by the number of their prompt, group by group."""

    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class Render:
    """Answered by one text: the conversation as `render_chat` has it."""

    messages: list[dict[str, str]]
    answering: bool


Request = Tokenize | Score | Complete | Render


def answer_requests(path: str, options: ContextOptions) -> Generator[Any, Request | None, None]:
    """Yield ModelFacts, then what answers each request that is sent, part by part, and None at its end.

    Send None to go on within an answer. Raises NativeError when llama.cpp cannot load or run the model.
    """
    with load_model(path, options.gpu_layers) as model:
        request = yield ModelFacts(
            model.n_ctx_train, model.bos, model.eos, model.adds_bos, model.metadata("tokenizer.chat_template")
        )
        while True:
            if isinstance(request, Tokenize):
                yield [model.tokenize(text, special=request.special, whole=request.whole) for text in request.texts]
            elif isinstance(request, Score):
                yield from score_continuations(model, request.requests, options)
            elif isinstance(request, Complete):
                yield from complete(model, request.prompts, options)
            elif isinstance(request, Render):
                yield render_chat(model, request.messages, answering=request.answering)
            request = yield None
