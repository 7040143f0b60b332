"""Text that a model writes by itself: many rows at once, a sequence each in one context, a token a row with each decode.

A row is some passages, one after the other: when the model ends one, its sequence is emptied and the next is begun, so
that every decode but the last few is as wide as there are rows. What a row says depends on its seed, and in its last
bits on the rows beside it, so a wave of rows is written whole or not at all.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import llama_cpp
import numpy as np

from native.errors import NativeError
from native.generate import require_finite
from native.model import Context, ContextOptions, Model, load_model, open_context

MOST_TOGETHER = 32  # rows; of 16, each took a tenth longer
CACHE_BYTES = 2**30  # what the KV cache of all rows may take
ENDINGS_ALLOWED = 16  # passages of one token, one after the other, before a model counts as one that cannot write
BLOCK = 256  # tokens that are skipped or not as one when one is sampled


@dataclass(frozen=True)
class WritingOptions:
    """How rows are written: `tokens` of text each, sampled at `temperature` > 0; row i's seed is (`seed`, i).

    A passage begins with any token of text, all alike, after BOS where the vocabulary adds it. Those of row i have at
    most `passages`[i % len(passages)] tokens.
    """

    tokens: int = 512
    passages: tuple[int, ...] = (128,)
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class WrittenWave:
    """Rows from number `first` on: their text, passages apart by a blank line, and the token ids of each.

    `nats` has the negative log-likelihood of each row, of the tokens that were sampled, at the temperature that they were
    sampled at.
    """

    first: int
    texts: list[str]
    tokens: list[list[int]]
    nats: list[float]


def write_waves(
    path: str, rows: int, done: Sequence[tuple[int, int]], writing: WritingOptions, options: ContextOptions
) -> Generator[int | WrittenWave, None, None]:
    """Write `rows` rows, without the waves (first row, number of rows) that are `done`.

    First yields how many rows a full wave has; then after each decode how many tokens of its wave are written, and each
    WrittenWave. Raises NativeError when the model cannot be loaded or run, has no vocabulary, computes NaN or infinity,
    or ends its texts at once.
    """
    with load_model(path) as model:
        vocabulary = Vocabulary(model)
        learned = model.n_ctx_train or max(writing.passages)  # positions; 0 says nothing
        longest = max(1, learned - len(vocabulary.bos))
        writing = replace(writing, passages=tuple(min(tokens, longest) for tokens in writing.passages))
        options = replace(options, n_ctx=max(writing.passages) + len(vocabulary.bos), n_batch=512)
        together = _rows_together(model, options)
        yield together
        for first in range(0, rows, together):
            count = min(together, rows - first)
            if (first, count) not in done:
                with open_context(model, replace(options, n_sequences=count)) as context:
                    yield from _write_wave(context, vocabulary, writing, first, count)


def _rows_together(model: Model, options: ContextOptions) -> int:
    """As many as fit in CACHE_BYTES, at most MOST_TOGETHER; a property of the model, whatever the machine has."""
    with open_context(model, options) as context:
        return max(1, min(MOST_TOGETHER, CACHE_BYTES // max(context.kv_cache_bytes, 1)))


class Vocabulary:
    """Which of a model's tokens are text.

    first: ids of the tokens that stand for whole characters, (n,); barred: of those that neither stand for text nor end
        it, (m,); ends: for each token whether it ends a text, (n_vocab,) bool
    bos: what is decoded before a passage, one token or none
    """

    def __init__(self, model: Model) -> None:
        special = (
            llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN | llama_cpp.LLAMA_TOKEN_ATTR_UNUSED
        )
        pieces = [
            b"" if llama_cpp.llama_vocab_get_attr(model.vocab, token) & special else model.piece(token)
            for token in range(model.n_vocab)
        ]
        self.ends = np.array([model.ends_generation(token) for token in range(model.n_vocab)], bool)
        self.barred = np.flatnonzero(~np.array([*map(bool, pieces)], bool) & ~self.ends)
        self.first = np.flatnonzero(
            np.array([bool(piece.decode(errors="ignore")) for piece in pieces], bool) & ~self.ends
        )
        if not len(self.first):
            raise NativeError(f"{model.path}: its vocabulary has no token that stands for text")
        self.bos = [model.bos] if model.adds_bos and model.bos >= 0 else []


@dataclass
class _Row:
    """A row that is being written: its passages so far, and what its sequence is to be given before sampling goes on."""

    random: np.random.Generator
    longest: int  # tokens that a passage of it may have
    passages: list[list[int]] = field(default_factory=list)
    given: deque[int] = field(default_factory=deque)
    decoded: int = 0  # tokens of the passage, with BOS
    nats: float = 0.0
    short: int = 0  # passages of one token, the given one, since the last that was longer

    @property
    def written(self) -> int:
        return sum(map(len, self.passages))

    def begin(self, vocabulary: Vocabulary) -> None:
        """Begin a passage in an empty sequence."""
        first = int(self.random.choice(vocabulary.first))
        self.passages.append([first])
        self.given.extend([*vocabulary.bos, first])
        self.decoded = 0


def _write_wave(
    context: Context, vocabulary: Vocabulary, writing: WritingOptions, first: int, count: int
) -> Generator[int | WrittenWave, None, None]:
    lengths = writing.passages
    rows = [
        _Row(np.random.default_rng([writing.seed, number]), lengths[number % len(lengths)])
        for number in range(first, first + count)
    ]
    for row in rows:
        row.begin(vocabulary)
    work = np.empty(context.model.n_vocab, np.float32)
    going = list(range(count))
    while going:
        tokens = [rows[i].given.popleft() for i in going]
        positions = np.array([rows[i].decoded for i in going])
        context.decode(tokens, positions, np.array(going), np.ones(len(going), bool))
        for i, scores in zip(going, context.logits(len(going)), strict=True):
            rows[i].decoded += 1
            if not rows[i].given:
                require_finite(context.model, scores)
                token, nats = sample(scores, writing.temperature, rows[i].random.random(), vocabulary.barred, work)
                rows[i].nats += nats
                _go_on(context, i, rows[i], token, vocabulary)
        yield sum(row.written for row in rows)
        going = [i for i in going if rows[i].written < writing.tokens]
    texts = ["\n\n".join(_text(context.model, passage) for passage in row.passages) for row in rows]
    ids = [[token for passage in row.passages for token in passage] for row in rows]
    yield WrittenWave(first, texts, ids, [row.nats for row in rows])


def _go_on(context: Context, sequence: int, row: _Row, token: int, vocabulary: Vocabulary) -> None:
    """Take a sampled token: it continues the row's passage, or ends it and the next is begun."""
    passage = row.passages[-1]
    if not vocabulary.ends[token] and len(passage) < row.longest:
        passage.append(token)
        row.given.append(token)
        return
    row.short = row.short + 1 if len(passage) == 1 else 0
    if row.short > ENDINGS_ALLOWED:
        raise NativeError(f"{context.model.path}: ends every text at once, whatever it begins with")
    context.forget(sequence)
    row.begin(vocabulary)


def _text(model: Model, tokens: Sequence[int]) -> str:
    return b"".join(map(model.piece, tokens)).decode("utf-8", errors="replace").strip("\n")


def sample(
    scores: np.ndarray, temperature: float, uniform: float, barred: np.ndarray, work: np.ndarray
) -> tuple[int, float]:
    """A token by softmax(scores / temperature) of logits (n,), float32, and its negative log-likelihood in nats.

    `uniform` in [0, 1) says which; none of the ids `barred`. `work`, (n,) float32, is overwritten. By inversion of the
    cumulative distribution: whole blocks are skipped first, since NumPy's cumulative sum is ten times slower than its sum.
    """
    np.subtract(scores, scores.max(), out=work)
    np.multiply(work, np.float32(1 / temperature), out=work)
    np.exp(work, out=work)
    work[barred] = 0
    starts = np.arange(0, len(work), BLOCK)
    blocks = np.add.reduceat(work, starts, dtype=np.float64)
    ends = np.cumsum(blocks)
    target = min(uniform * ends[-1], np.nextafter(ends[-1], 0))
    block = int(np.searchsorted(ends, target, side="right"))
    within = work[block * BLOCK : (block + 1) * BLOCK]
    reached = np.cumsum(within, dtype=np.float64) + (ends[block] - blocks[block])
    index = int(np.searchsorted(reached, target, side="right"))
    token = block * BLOCK + min(index, int(np.flatnonzero(within)[-1]))
    return token, float(np.log(ends[-1] / work[token]))
