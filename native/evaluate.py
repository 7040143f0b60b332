"""The one evaluator: texts decoded in chunks as llama.cpp's perplexity tool does, scored chunk by chunk.

The rules (tools/perplexity/perplexity.cpp): chunks of n_ctx tokens that do not overlap; the first token of a chunk is
replaced by BOS for decoding if the vocabulary adds BOS; the second half is scored. A chunk is decoded by itself, so
that its scores depend on nothing else that is measured. Models are run in step, so that one base, whose logits are
too many to keep, serves them all; or they are held against logits of a base that were recorded.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import llama_cpp
import numpy as np

from native.errors import NativeError, TextError, require_tokens
from native.model import Context, ContextOptions, Model, load_model, open_context
from native.recorded import read_logits, recording
from native.scoring import TokenScores, score_tokens

BATCH_TOKENS = 2048  # llama.cpp's default batch: a longer chunk is decoded in parts


@dataclass(frozen=True)
class ModelRun:
    """A model, and how it is run; a context of `options.n_ctx` tokens holds one chunk."""

    path: str
    options: ContextOptions


@dataclass(frozen=True)
class TextChunks:
    """A text, and which of its chunks are wanted: from number `first` on, up to `most` in all, those before included.

    `recorded` is the folder of a base's logits, which are there for every chunk, or are to be written.
    """

    content: str
    most: int | None = None  # as many as there are
    first: int = 0
    recorded: str | None = None


@dataclass(frozen=True)
class EvaluationStart:
    """Known before the first decode: the chunks of each text, and the bytes that each model's KV cache takes."""

    chunks: tuple[int, ...]
    kv_cache_bytes: tuple[int, ...]


@dataclass(frozen=True)
class ScoredChunk:
    """Chunk `number` of text number `text`; `scores` and the `seconds` of decoding, without scoring, model by model."""

    text: int
    number: int
    scores: tuple[TokenScores, ...]
    seconds: tuple[float, ...]


Chunks = Generator[EvaluationStart | ScoredChunk, bool | None, None]


def as_reference(options: ContextOptions) -> ContextOptions:
    """How a base is run beside a model that is run with `options`: its KV cache in F16, whatever the model's is."""
    return replace(options, type_k="f16", type_v="f16")


def evaluate_chunks(models: Sequence[ModelRun], texts: Sequence[TextChunks], base: ModelRun | None = None) -> Chunks:
    """Yield an EvaluationStart, then text by text each chunk's scores under all models, in step with `base` if given.

    Without `base`, a text's `recorded` logits are what the models are held against. Send True in reply to a chunk to
    end its text there. Raises NativeError when a model cannot be loaded or run, when a text has fewer than two chunks,
    or when the models' vocabularies differ.
    """
    with ExitStack() as stack:
        runs = [*models, *([base] if base else [])]
        loaded = [stack.enter_context(load_model(run.path, run.options.gpu_layers)) for run in runs]
        opened = list(zip(loaded, (run.options for run in runs), strict=True))
        yield from score_texts(opened[: len(models)], texts, opened[-1] if base else None)


def score_texts(
    models: Sequence[tuple[Model, ContextOptions]],
    texts: Sequence[TextChunks],
    base: tuple[Model, ContextOptions] | None = None,
    *,
    record: bool = False,
) -> Chunks:
    """As `evaluate_chunks`, of models that are loaded; with `record` the first one's logits are kept, as the base's."""
    everything = [*models, *([base] if base else [])]
    n_ctx = everything[0][1].n_ctx
    grids = shared_chunks([model for model, _ in everything], texts, n_ctx)
    with ExitStack() as stack:
        contexts = [
            stack.enter_context(open_context(model, replace(options, n_batch=min(n_ctx, BATCH_TOKENS))))
            for model, options in everything
        ]
        yield EvaluationStart(tuple(map(len, grids)), tuple(context.kv_cache_bytes for context in contexts))
        reference = contexts.pop() if base else None
        for which, (text, grid) in enumerate(zip(texts, grids, strict=True)):
            for number in range(text.first, len(grid)):
                kept = Path(text.recorded) if text.recorded else None
                chunk = _Chunk(contexts, grid[number])
                if record and kept:
                    with recording(kept, number) as file:
                        chunk.score_and_record(file)
                elif reference:
                    chunk.score_beside(reference)
                else:
                    chunk.score(
                        read_logits(kept, number, (n_ctx - 1 - n_ctx // 2, models[0][0].n_vocab)) if kept else None
                    )
                if (yield ScoredChunk(which, number, *chunk.found())):
                    break


def shared_chunks(models: Sequence[Model], texts: Sequence[TextChunks], n_ctx: int) -> list[np.ndarray]:
    """The chunks of each text, token ids of shape (chunks, n_ctx), tokenised once if the vocabularies are the same.

    Raises NativeError when a model has other tokens for a text than the first, or a text fewer than two chunks.
    """
    first = models[0]
    grids = []
    for number, text in enumerate(texts):
        try:
            grids.append(text_chunks(first, text.content, n_ctx, text.most))
        except TextError as error:
            error.text = number
            raise
    for other in models[1:]:
        if same_vocabulary(first, other):
            continue
        pairs = zip(texts, grids, strict=True)
        if first.n_vocab != other.n_vocab or not all(
            np.array_equal(grid, text_chunks(other, text.content, n_ctx, text.most)) for text, grid in pairs
        ):
            raise NativeError(
                f"{other.path}: has another vocabulary than {first.path}; KL divergence needs the same tokens in both"
            )
    return grids


def same_vocabulary(one: Model, other: Model) -> bool:
    """Whether each token stands for the same in two models, and both are to be given a text's tokens by the same rules."""
    if one.path == other.path:
        return True
    rules = (
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.bos_token_id",
    )
    return (
        one.n_vocab == other.n_vocab
        and one.adds_bos == other.adds_bos
        and all(one.metadata(rule) == other.metadata(rule) for rule in rules)
        and all(
            llama_cpp.llama_vocab_get_text(one.vocab, i) == llama_cpp.llama_vocab_get_text(other.vocab, i)
            and llama_cpp.llama_vocab_get_score(one.vocab, i) == llama_cpp.llama_vocab_get_score(other.vocab, i)
            for i in range(one.n_vocab)
        )
    )


def text_chunks(model: Model, text: str, n_ctx: int, most: int | None) -> np.ndarray:
    """Up to `most` chunks of `text`, token ids of shape (chunks, n_ctx). Raises TextError for less than two chunks."""
    tokens = model.tokenize(text, special=False)
    require_tokens(len(tokens), 2 * n_ctx, f"two chunks of {n_ctx}: use a longer text or smaller chunks")
    count = min(most or len(tokens) // n_ctx, len(tokens) // n_ctx)
    return tokens[: count * n_ctx].reshape(count, n_ctx)


def scored_positions(n_ctx: int, n_batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions of a chunk, (n,) int, batch by batch, and which of them are scored, (n,) bool: the second half."""
    for begin in range(0, n_ctx, n_batch):
        positions = np.arange(begin, min(begin + n_batch, n_ctx))
        yield positions, (positions >= n_ctx // 2) & (positions < n_ctx - 1)


class _Chunk:
    """Token ids (n_ctx,) of a chunk while it is decoded and scored, batch by batch, by the models of `contexts`."""

    def __init__(self, contexts: Sequence[Context], tokens: np.ndarray) -> None:
        self.contexts, self.tokens = contexts, tokens
        self.parts: list[list[TokenScores]] = [[] for _ in contexts]
        self.seconds = [0.0] * len(contexts)

    def found(self) -> tuple[tuple[TokenScores, ...], tuple[float, ...]]:
        return tuple(map(TokenScores.concatenate, self.parts)), tuple(self.seconds)

    def score(self, base_logits: np.ndarray | None) -> None:
        """`base_logits`: a base's, float32 (scored tokens, n_vocab)."""
        done = 0
        for positions, outputs in self._batches(self.contexts):
            n = int(outputs.sum())
            self._score_batch(positions, outputs, None if base_logits is None else base_logits[done : done + n])
            done += n

    def score_beside(self, reference: Context) -> None:
        for positions, outputs in self._batches([*self.contexts, reference]):
            _decode(reference, self.tokens, positions, outputs)
            base_logits = reference.logits(int(outputs.sum())) if outputs.any() else None
            self._score_batch(positions, outputs, base_logits)

    def score_and_record(self, file: IO[bytes]) -> None:
        """Write the logits of the first model's scored tokens to `file`."""
        for positions, outputs in self._batches(self.contexts):
            self._score_batch(positions, outputs, None)
            if outputs.any():
                self.contexts[0].logits(int(outputs.sum())).tofile(file)

    def _batches(self, contexts: Sequence[Context]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for context in contexts:
            context.clear()
        yield from scored_positions(len(self.tokens), BATCH_TOKENS)

    def _score_batch(self, positions: np.ndarray, outputs: np.ndarray, base_logits: np.ndarray | None) -> None:
        targets = self.tokens[positions[outputs] + 1]
        for number, context in enumerate(self.contexts):
            started = time.perf_counter()
            _decode(context, self.tokens, positions, outputs)
            logits = context.logits(len(targets)) if len(targets) else None  # reading logits waits for the decode
            self.seconds[number] += time.perf_counter() - started
            if logits is not None:
                self.parts[number].append(score_tokens(logits, targets, base_logits))


def _decode(context: Context, tokens: np.ndarray, positions: np.ndarray, outputs: np.ndarray) -> None:
    decode_columns(context, tokens[np.newaxis], positions, outputs)


def decode_columns(context: Context, chunks: np.ndarray, positions: np.ndarray, outputs: np.ndarray) -> None:
    """Decode these positions of all chunks, a sequence a chunk, asking for logits where `outputs` says."""
    tokens = chunks[:, positions]
    if positions[0] == 0 and context.model.adds_bos:
        tokens = tokens.copy()
        tokens[:, 0] = context.model.bos
    n = len(chunks)
    context.decode(tokens.ravel(), np.tile(positions, n), np.repeat(np.arange(n), len(positions)), np.tile(outputs, n))
