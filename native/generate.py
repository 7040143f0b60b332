"""Answer prompts with a model, a piece of text at a time, in the model's own chat template."""

import codecs
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import llama_cpp
import numpy as np

from native.chat_template import ChatTemplateError, Message, render_chat
from native.errors import NativeError
from native.model import Context, ContextOptions, Model, load_model, open_context

DEFAULT_CONTEXT = 4096  # tokens, at most


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens: `temperature` 0 takes the likeliest; `top_p` in (0, 1]; `max_tokens` an answer."""

    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    max_tokens: int = 256


@dataclass(frozen=True)
class AnswerStatistics:
    """Sent after an answer: tokens and seconds of prompt and generation, and why the answer ended.

    `cached_tokens` of the prompt were in the KV cache already, so `prompt_seconds` is for the others.
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    finish_reason: str  # "stop", "length" (max_tokens), "context" (n_ctx is full) or "interrupted"


@dataclass(frozen=True)
class Restart:
    """Sent instead of a message: what was said is forgotten."""


@dataclass(frozen=True)
class Refusal:
    """Yielded instead of an answer: why there is none. The message is forgotten, the conversation goes on."""

    reason: str


Chat = Generator[str | AnswerStatistics | Refusal | None, str | Restart | None, None]


def chat(
    path: str, options: ContextOptions, sampling: SamplingOptions, *, system: str | None = None, plain: bool = False
) -> Chat:
    """A conversation. First yields None; send it a message, it yields the answer's pieces, then AnswerStatistics.

    Send the next message in reply to the statistics; anything in reply to a piece ends the answer. What was said stays
    in the KV cache. `system` is a message that all begins with; `plain` does without the model's chat template. A
    message that the template does not take or that does not fit in the context is answered by a Refusal; Restart is
    answered by None. Raises NativeError when the model cannot be loaded or computes NaN.
    """
    with load_model(path, options.gpu_layers) as model:
        n_ctx = options.n_ctx or min(model.n_ctx_train or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        with open_context(model, replace(options, n_ctx=n_ctx)) as context:
            first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
            messages = first.copy()
            cached = np.empty(0, np.int32)
            reply: AnswerStatistics | Refusal | None = None
            while True:
                message = yield reply
                if isinstance(message, Restart):
                    messages, reply = first.copy(), None
                    continue
                messages.append({"role": "user", "content": message or ""})
                try:
                    prompt = prompt_tokens(model, messages, n_ctx, plain=plain)
                except NativeError as error:
                    messages.pop()
                    advice = "; `plain` does without it" if isinstance(error, ChatTemplateError) else ""
                    reply = Refusal(f"{error}{advice}")
                    continue
                answer: list[str] = []
                cached, reply = yield from _answer(context, n_ctx, prompt, cached, sampling, answer)
                messages.append({"role": "assistant", "content": "".join(answer)})


def prompt_tokens(
    model: Model, messages: Sequence[Message], n_ctx: int | None = None, *, plain: bool = False
) -> np.ndarray:
    """The tokens that a conversation begins an answer with, int32 (n,) with 0 < n < `n_ctx`, if that is given.

    Raises NativeError when the chat template fails, leaves no tokens, or more than fit.
    """
    tokens = model.tokenize(render_chat(model, messages, plain=plain), special=True)
    if not len(tokens):
        raise NativeError(f"{model.path}: the prompt has no tokens in this model's vocabulary; ask something else")
    if n_ctx is not None and len(tokens) >= n_ctx:
        raise NativeError(
            f"the conversation has {len(tokens)} tokens, the context {n_ctx}; use a larger `n_ctx` or start anew"
        )
    return tokens


def _answer(
    context: Context, n_ctx: int, prompt: np.ndarray, cached: np.ndarray, sampling: SamplingOptions, answer: list[str]
) -> Generator[Any, Any, tuple[np.ndarray, AnswerStatistics]]:
    started = time.perf_counter()
    reused = decode_prompt(context, prompt, cached)
    prompt_seconds = time.perf_counter() - started
    generated: list[int] = []
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    reason = "length"
    for token in sample_tokens(context, len(prompt), min(sampling.max_tokens, n_ctx - len(prompt)), sampling):
        if context.model.ends_generation(token):
            reason = "stop"
            break
        generated.append(token)
        if piece := decoder.decode(context.model.piece(token)):
            answer.append(piece)
            if (yield piece) is not None:
                reason = "interrupted"
                break
    if reason == "length" and len(generated) < sampling.max_tokens:
        reason = "context"
    seconds = time.perf_counter() - started - prompt_seconds
    statistics = AnswerStatistics(len(prompt), reused, prompt_seconds, len(generated), seconds, reason)
    decoded = generated if reason == "stop" else generated[:-1]  # the last one was decoded only if one was sampled then
    return np.concatenate([prompt, np.array(decoded, np.int32)]), statistics


def decode_prompt(context: Context, prompt: np.ndarray, cached: np.ndarray, n_batch: int = 512) -> int:
    """Decode what of `prompt` is not in the KV cache yet, with logits for its last token; how many tokens were."""
    shared = min(len(cached), len(prompt) - 1)
    shared = int(np.argmin(np.append(cached[:shared] == prompt[:shared], False)))
    shared = context.keep_first(shared)
    for start in range(shared, len(prompt), n_batch):
        part = prompt[start : start + n_batch]
        positions = np.arange(start, start + len(part))
        context.decode(part, positions, np.zeros(len(part), np.int32), positions == len(prompt) - 1)
    return shared


def require_finite(model: Model, logits: np.ndarray) -> None:
    """Raise NativeError when the largest of some logits is NaN or infinite."""
    if not np.isfinite(largest := logits.max()):
        raise NativeError(f"{model.path}: the largest logit is {largest}; the model is numerically broken")


def sample_tokens(context: Context, position: int, limit: int, sampling: SamplingOptions) -> Iterator[int]:
    """Sample up to `limit` tokens, each decoded before the next is sampled. Raises NativeError on NaN or infinity."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if sampling.temperature <= 0:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
    else:
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_temp(sampling.temperature))
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(sampling.seed))
    zero, one = np.zeros(1, np.int32), np.ones(1, np.int8)
    try:
        for i in range(limit):
            require_finite(context.model, context.logits(1))
            token = int(llama_cpp.llama_sampler_sample(chain, context.pointer, -1))
            yield token
            if i + 1 < limit:
                context.decode([token], np.array([position + i]), zero, one)
    finally:
        llama_cpp.llama_sampler_free(chain)
