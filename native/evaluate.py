"""Decode a text in chunks as llama.cpp's perplexity tool does, one model alone or in step with a base.

The rules (tools/perplexity/perplexity.cpp): chunks of n_ctx tokens that do not overlap, several decoded at once; the
first token of a chunk is replaced by BOS for decoding if the vocabulary adds BOS; the second half is scored.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from native.errors import NativeError
from native.model import Context, ContextOptions, Model, load_model, open_context
from native.scoring import TokenScores, score_tokens

BATCH_TOKENS = 2048  # llama.cpp's default batch: four chunks of 512 at once


@dataclass(frozen=True)
class EvaluationStart:
    """Known before the first decode. `kv_cache_bytes` is what llama.cpp allocates for n_ctx tokens."""

    chunks: int
    n_ctx: int
    kv_cache_bytes: int


def evaluate_chunks(
    path: str, base_path: str | None, text: str, *, chunks: int | None, options: ContextOptions
) -> Generator[EvaluationStart | list[TokenScores], None, None]:
    """Yield an EvaluationStart, then after each decode the scores of the chunks that it finished, in order.

    Raises NativeError when a model cannot be loaded, when the text has fewer than two chunks, or when the base has
    another vocabulary. The types of the KV cache in `options` are the model's: the base's cache is F16.
    """
    n_ctx = options.n_ctx
    with ExitStack() as stack:
        models = [stack.enter_context(load_model(p, options.gpu_layers)) for p in (path, base_path) if p is not None]
        grid = text_chunks(models[0], text, n_ctx, chunks)
        if len(models) > 1 and (
            models[0].n_vocab != models[1].n_vocab
            or not np.array_equal(grid, text_chunks(models[1], text, n_ctx, chunks))
        ):
            raise NativeError(
                f"{base_path}: has another vocabulary than {path}; KL divergence needs the same tokens in both"
            )
        count = len(grid)
        together = max(1, min(BATCH_TOKENS // n_ctx, count))
        wanted = replace(options, n_sequences=together, n_batch=BATCH_TOKENS)
        runs = zip(models, (wanted, as_reference(wanted)), strict=False)
        contexts = [stack.enter_context(open_context(model, each)) for model, each in runs]
        yield EvaluationStart(count, n_ctx, contexts[0].kv_cache_bytes // together)
        for start in range(0, count, together):
            yield score_chunks(contexts, grid[start : start + together])


def as_reference(options: ContextOptions) -> ContextOptions:
    """How a base is run beside a model that is run with `options`: its KV cache in F16, whatever the model's is."""
    return replace(options, type_k="f16", type_v="f16")


def text_chunks(model: Model, text: str, n_ctx: int, most: int | None) -> np.ndarray:
    """Up to `most` chunks of `text`, token ids of shape (chunks, n_ctx). Raises NativeError for less than two chunks."""
    tokens = model.tokenize(text, special=False)
    if len(tokens) < 2 * n_ctx:
        raise NativeError(
            f"the text has {len(tokens)} tokens; at least {2 * n_ctx} are needed, two chunks of {n_ctx}: use a longer text or a smaller --ctx"
        )
    count = min(most or len(tokens) // n_ctx, len(tokens) // n_ctx)
    return tokens[: count * n_ctx].reshape(count, n_ctx)


def scored_positions(n_ctx: int, n_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions of a chunk, (n,) int, batch by batch, and which of them are scored, (n,) bool: the second half."""
    for begin in range(0, n_ctx, n_batch):
        positions = np.arange(begin, min(begin + n_batch, n_ctx))
        yield positions, (positions >= n_ctx // 2) & (positions < n_ctx - 1)


def score_chunks(contexts: Sequence[Context], chunks: np.ndarray) -> list[TokenScores]:
    """Decode chunks (n, n_ctx) of token ids with the model and, if there is a second context, the base in step."""
    n_chunks, n_ctx = chunks.shape
    for context in contexts:
        context.clear()
    parts: list[list[TokenScores]] = [[] for _ in range(n_chunks)]
    for positions, outputs in scored_positions(n_ctx, BATCH_TOKENS):
        for context in contexts:
            decode_columns(context, chunks, positions, outputs)
        n_scored = int(outputs.sum())
        if n_scored == 0:
            continue
        logits = [context.logits(n_chunks * n_scored) for context in contexts]
        for i in range(n_chunks):
            rows = slice(i * n_scored, (i + 1) * n_scored)
            parts[i].append(
                score_tokens(logits[0][rows], chunks[i, positions[outputs] + 1], *(base[rows] for base in logits[1:]))
            )
    return [TokenScores.concatenate(part) for part in parts]


def decode_columns(context: Context, chunks: np.ndarray, positions: np.ndarray, outputs: np.ndarray) -> None:
    """Decode these positions of all chunks, a sequence a chunk, asking for logits where `outputs` says."""
    tokens = chunks[:, positions]
    if positions[0] == 0 and context.model.adds_bos:
        tokens = tokens.copy()
        tokens[:, 0] = context.model.bos
    n = len(chunks)
    context.decode(tokens.ravel(), np.tile(positions, n), np.repeat(np.arange(n), len(positions)), np.tile(outputs, n))
