"""How fast models run behind a filled KV cache: in turn, so that a machine whose speed drifts treats them alike."""

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from native.errors import NativeError
from native.model import Context, ContextOptions, load_model, open_context

PROMPT_TOKENS = 512
GENERATED_TOKENS = 16
ROUNDS = 3


@dataclass(frozen=True)
class SpeedSample:
    """Seconds that model number `model` took for a prompt behind `depth` tokens, and for each token generated then.

    kv_cache_bytes: what llama.cpp allocates for `n_ctx` tokens: depth, prompt and generated ones
    """

    model: int
    depth: int
    n_ctx: int
    kv_cache_bytes: int
    prompt_seconds: float
    token_seconds: list[float]


def decoded_tokens(models: int, depths: Sequence[int]) -> int:
    """How many tokens `measure_speeds` decodes in all."""
    return models * sum(depth + ROUNDS * (PROMPT_TOKENS + GENERATED_TOKENS) for depth in depths)


def measure_speeds(
    models: Sequence[tuple[str, ContextOptions]], depths: Sequence[int]
) -> Generator[int | SpeedSample, None, None]:
    """Yield a SpeedSample for each of ROUNDS, model by model, at each depth; and after each decode its tokens.

    `models` are paths and how each is run; the context's length and batch are those of a depth. Raises NativeError
    when a model cannot be loaded, or has no context this long.
    """
    with ExitStack() as opened:
        loaded = [(opened.enter_context(load_model(path, options.gpu_layers)), options) for path, options in models]
        for depth in depths:
            n_ctx = depth + PROMPT_TOKENS + GENERATED_TOKENS
            with ExitStack() as stack:
                for model, _ in loaded:
                    if model.learned_positions and n_ctx > model.n_ctx_train:
                        raise NativeError(
                            f"{model.path}: has learned positions for {model.n_ctx_train} tokens, and measuring its"
                            f" speed behind {depth} takes {n_ctx}; leave `depths` out"
                        )
                contexts = [
                    stack.enter_context(open_context(model, replace(options, n_ctx=n_ctx, n_batch=PROMPT_TOKENS)))
                    for model, options in loaded
                ]
                for context in contexts:
                    for start in range(0, depth, PROMPT_TOKENS):
                        count = min(PROMPT_TOKENS, depth - start)
                        _decode(context, start, count)
                        yield count
                states = [None if context.model.branches else context.state() for context in contexts]
                for _ in range(ROUNDS):
                    for number, context in enumerate(contexts):
                        _rewind(context, depth, states[number])
                        prompt = _decode(context, depth, PROMPT_TOKENS)
                        tokens = [_decode(context, depth + PROMPT_TOKENS + i, 1) for i in range(GENERATED_TOKENS)]
                        yield PROMPT_TOKENS + GENERATED_TOKENS
                        yield SpeedSample(number, depth, n_ctx, context.kv_cache_bytes, prompt, tokens)


def _rewind(context: Context, depth: int, state: np.ndarray | None) -> None:
    """Leave the first `depth` tokens in memory, which are `state` where it is one that cannot be cut back."""
    if depth == 0:
        context.clear()
    elif state is None:
        context.keep_first(depth)
    else:
        context.restore(state)


def _decode(context: Context, start: int, count: int) -> float:
    """The seconds that `count` tokens at position `start` take, with the logits of the last; which tokens is no matter."""
    positions = np.arange(start, start + count)
    started = time.perf_counter()
    context.decode(
        positions % context.model.n_vocab, positions, np.zeros(count, np.int32), positions == start + count - 1
    )
    context.logits(1)  # waits for the decode
    return time.perf_counter() - started
