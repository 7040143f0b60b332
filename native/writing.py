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

from native.chat_template import render_chat
from native.errors import NativeError
from native.generate import require_finite
from native.model import Context, ContextOptions, Model, load_model, open_context

MOST_TOGETHER = 32  # rows; of 16, each took a tenth longer
CACHE_BYTES = 2**30  # what the KV cache of all rows may take
ENDINGS_ALLOWED = 16  # passages without a token, one after the other, before a model counts as one that cannot write
BLOCK = 256  # tokens that are skipped or not as one when one is sampled
MARK = "\x1amessage\x1a"  # stands for what a user says, where a template is taken apart


@dataclass(frozen=True)
class WritingOptions:
    """How rows are written: `tokens` of text each, sampled at `temperature` > 0; row i's seed is (`seed`, i).

    opening: how a passage begins: `random`, with any token of text, all alike; `likely`, with what the model lets
        follow its BOS (or, without one, its EOS); `question`, as a user's message in the model's chat template, which
        the model writes and then answers
    """

    tokens: int = 512
    temperature: float = 1.0
    opening: str = "random"
    seed: int = 0


@dataclass(frozen=True)
class WrittenWave:
    """Rows from number `first` on: their text, passages apart by a blank line, and the token ids of each."""

    first: int
    texts: list[str]
    tokens: list[list[int]]


def write_waves(
    path: str, rows: int, done: Sequence[tuple[int, int]], writing: WritingOptions, options: ContextOptions
) -> Generator[int | WrittenWave, None, None]:
    """Write `rows` rows, without the waves (first row, number of rows) that are `done`.

    First yields how many rows a full wave has; then after each decode how many tokens of its wave are written, and each
    WrittenWave. Raises NativeError when the model cannot be loaded or run, has no vocabulary or chat template to write
    with, computes NaN or infinity, or ends its texts at once.
    """
    with load_model(path) as model:
        prompts = Prompts(model, writing.opening)
        options = replace(options, n_ctx=writing.tokens + prompts.longest, n_batch=512)
        together = _rows_together(model, options)
        yield together
        for first in range(0, rows, together):
            count = min(together, rows - first)
            if (first, count) not in done:
                with open_context(model, replace(options, n_sequences=count)) as context:
                    yield from _write_wave(context, prompts, writing, first, count)


def _rows_together(model: Model, options: ContextOptions) -> int:
    """As many as fit in CACHE_BYTES, at most MOST_TOGETHER; a property of the model, whatever the machine has."""
    with open_context(model, options) as context:
        return max(1, min(MOST_TOGETHER, CACHE_BYTES // max(context.kv_cache_bytes, 1)))


class Prompts:
    """What a model's passages begin with, and what is no part of them.

    first: ids of the tokens that stand for whole characters, (n,); barred: of those that neither stand for text nor end
        it, (m,); ends: for each token whether it ends a text, (n_vocab,) bool
    before, between: token ids that are decoded before a passage, and between a question and its answer
    """

    def __init__(self, model: Model, opening: str) -> None:
        special = (
            llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN | llama_cpp.LLAMA_TOKEN_ATTR_UNUSED
        )
        pieces = [
            b"" if llama_cpp.llama_vocab_get_attr(model.vocab, token) & special else model.piece(token)
            for token in range(model.n_vocab)
        ]
        self.ends = np.array([model.ends_generation(token) for token in range(model.n_vocab)])
        self.barred = np.flatnonzero(~np.array([*map(bool, pieces)]) & ~self.ends)
        self.first = np.flatnonzero(np.array([bool(piece.decode(errors="ignore")) for piece in pieces]) & ~self.ends)
        if not len(self.first):
            raise NativeError(f"{model.path}: its vocabulary has no token that stands for text")
        self.before: list[int] = []
        self.between: list[int] = []
        if opening == "question":
            self.before, self.between = chat_turns(model)
        elif opening == "likely":
            eos = int(llama_cpp.llama_vocab_eos(model.vocab))
            self.before = [token for token in (model.bos, eos) if token >= 0][:1]
        elif model.adds_bos:
            self.before = [model.bos]

    @property
    def longest(self) -> int:
        """How many tokens are decoded at most beside those of a passage."""
        return len(self.before) + len(self.between)


def chat_turns(model: Model) -> tuple[list[int], list[int]]:
    """What a model's chat template writes before a user's message and after it, as token ids.

    Raises NativeError when there is no template, or it fails or leaves the message out.
    """
    if model.metadata("tokenizer.chat_template") is None:
        raise NativeError(f"{model.path}: has no chat template")
    before, mark, after = render_chat(model, [{"role": "user", "content": MARK}]).partition(MARK)
    if not mark:
        raise NativeError(f"{model.path}: its chat template leaves out what the user says")
    return model.tokenize(before, special=True).tolist(), model.tokenize(after, special=True).tolist()


@dataclass
class _Row:
    """A row that is being written: its passages so far, and what its sequence is to be given before sampling goes on."""

    random: np.random.Generator
    passages: list[list[int]] = field(default_factory=list)
    given: deque[int] = field(default_factory=deque)
    asking: bool = False  # the passage is a question, not yet answered
    decoded: int = 0  # tokens of the passage, and of what it was given
    empty: int = 0  # passages without a token since the last that had some

    @property
    def written(self) -> int:
        return sum(map(len, self.passages))

    def begin(self, prompts: Prompts, opening: str) -> None:
        """Begin a passage in an empty sequence."""
        self.passages.append([])
        self.decoded = 0
        self.given.extend(prompts.before)
        self.asking = opening == "question"
        if opening == "random":
            first = int(self.random.choice(prompts.first))
            self.passages[-1].append(first)
            self.given.append(first)


def _write_wave(
    context: Context, prompts: Prompts, writing: WritingOptions, first: int, count: int
) -> Generator[int | WrittenWave, None, None]:
    rows = [_Row(np.random.default_rng([writing.seed, first + i])) for i in range(count)]
    for row in rows:
        row.begin(prompts, writing.opening)
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
                token = sample(scores, writing.temperature, rows[i].random.random(), prompts.barred, work)
                _go_on(context, i, rows[i], token, prompts, writing)
        yield sum(row.written for row in rows)
        going = [i for i in going if rows[i].written < writing.tokens]
    kept = [[passage for passage in row.passages if passage] for row in rows]
    texts = ["\n\n".join(_text(context.model, passage) for passage in passages) for passages in kept]
    yield WrittenWave(first, texts, [[token for passage in passages for token in passage] for passages in kept])


def _go_on(context: Context, sequence: int, row: _Row, token: int, prompts: Prompts, writing: WritingOptions) -> None:
    """Take a sampled token: it continues the row's passage, or ends it and the next is begun."""
    if not prompts.ends[token]:
        row.passages[-1].append(token)
        row.given.append(token)
        row.empty = 0
    elif row.asking:
        row.asking = False
        row.passages.append([])
        row.given.extend(prompts.between)
    else:
        row.empty += 1
        if row.empty > ENDINGS_ALLOWED:
            raise NativeError(f"{context.model.path}: ends every text that it begins at once")
        context.forget(sequence)
        row.begin(prompts, writing.opening)


def _text(model: Model, tokens: Sequence[int]) -> str:
    return b"".join(map(model.piece, tokens)).decode("utf-8", errors="replace").strip("\n")


def sample(scores: np.ndarray, temperature: float, uniform: float, barred: np.ndarray, work: np.ndarray) -> int:
    """A token by softmax(scores / temperature) of logits (n,), float32; `uniform` in [0, 1) says which.

    None of the ids `barred`. `work`, (n,) float32, is overwritten. By inversion of the cumulative distribution: whole
    blocks are skipped first, since NumPy's cumulative sum is ten times slower than its sum.
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
    return block * BLOCK + min(index, int(np.flatnonzero(within)[-1]))
