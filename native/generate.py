"""Answer prompts with a model, a piece of text at a time, in the model's own chat template."""

import codecs
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from native.errors import NativeError
from native.model import Context, ContextOptions, Model, load_model, open_context


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


def chat(
    path: str, options: ContextOptions, sampling: SamplingOptions
) -> Generator[str | AnswerStatistics | None, str | None, None]:
    """A conversation. First yields None; send it a message, it yields the answer's pieces, then AnswerStatistics.

    Send the next message in reply to the statistics; anything in reply to a piece ends the answer. What was said stays
    in the KV cache. Raises NativeError when the model cannot be loaded or a message does not fit in the context.
    """
    with load_model(path, options.gpu_layers) as model:
        n_ctx = options.n_ctx or min(model.n_ctx_train, 4096)
        with open_context(model, ContextOptions(**{**vars(options), "n_ctx": n_ctx})) as context:
            messages: list[dict[str, str]] = []
            cached = np.empty(0, np.int32)
            statistics: AnswerStatistics | None = None
            while True:
                messages.append({"role": "user", "content": (yield statistics) or ""})
                prompt = model.tokenize(render_chat(model, messages), special=True)
                answer: list[str] = []
                cached, statistics = yield from _answer(context, n_ctx, prompt, cached, sampling, answer)
                messages.append({"role": "assistant", "content": "".join(answer)})


def render_chat(model: Model, messages: list[dict[str, str]]) -> str:
    """The conversation as the model's chat template writes it; plain text for a model that has none."""
    template = model.metadata("tokenizer.chat_template")
    if template is None:
        return "\n".join(message["content"] for message in messages)
    formatter = Jinja2ChatFormatter(
        template, eos_token=_token_text(model, "eos"), bos_token="" if model.adds_bos else _token_text(model, "bos")
    )
    return str(formatter(messages=messages).prompt)


def _token_text(model: Model, name: str) -> str:
    token = getattr(llama_cpp, f"llama_vocab_{name}")(model.vocab)
    return "" if token < 0 else llama_cpp.llama_vocab_get_text(model.vocab, token).decode("utf-8", errors="replace")


def _answer(
    context: Context, n_ctx: int, prompt: np.ndarray, cached: np.ndarray, sampling: SamplingOptions, answer: list[str]
) -> Generator[Any, Any, tuple[np.ndarray, AnswerStatistics]]:
    if len(prompt) >= n_ctx:
        raise NativeError(
            f"the conversation has {len(prompt)} tokens, the context {n_ctx}; use a larger --ctx or start anew"
        )
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
    return np.concatenate([prompt, np.array(generated[:-1], np.int32)]), statistics


def decode_prompt(context: Context, prompt: np.ndarray, cached: np.ndarray, n_batch: int = 512) -> int:
    """Decode what of `prompt` is not in the KV cache yet, with logits for its last token; how many tokens were."""
    shared = min(len(cached), len(prompt) - 1)
    shared = int(np.argmin(np.append(cached[:shared] == prompt[:shared], False)))
    context.keep_first(shared)
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
