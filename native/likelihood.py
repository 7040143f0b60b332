"""How likely continuations are: many at once, and what several begin with is decoded once.

The inputs of a round form a tree: a token belongs to every sequence that goes through it, as llama.cpp allows where
the sequences share a cache. Inputs are taken in lexicographic order, so that those which begin alike meet, and what the
last of a round has in common with the first of the next stays in the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from native.errors import NativeError
from native.model import Context, ContextOptions, Model, open_context
from native.scoring import log_sum_exp

ROUND_TOKENS = 512  # as many as llama.cpp computes at once: more would only read more of the cache
MOST_SEQUENCES = 128
CELLS = 256  # llama.cpp's caches are multiples of this


@dataclass(frozen=True)
class Continuation:
    """Token ids: how likely is `target`, (m,) with m >= 1, right after `context`, (n,) with n >= 1?"""

    context: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Likelihood:
    """log p of each token of a continuation, float64 (m,) in nats; whether each was the likeliest."""

    log_probabilities: np.ndarray
    greedy: bool

    @property
    def total(self) -> float:
        return float(self.log_probabilities.sum())


@dataclass(frozen=True)
class Scored:
    """The likelihoods that a round finished, by the number of the request; tokens decoded, and tokens not decoded again."""

    likelihoods: dict[int, Likelihood]
    decoded: int
    saved: int


@dataclass
class Round:
    """A tree of tokens, one entry a token in each list; parents stand before their children.

    `wanted` names the outputs of each request, by its number. `forks`: how many cached tokens each sequence begins
    with. `last` is the input that was added last, `sequence` its sequence.
    """

    last: np.ndarray
    cached: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    owners: list[list[int]] = field(default_factory=list)
    outputs: list[bool] = field(default_factory=list)
    wanted: dict[int, list[int]] = field(default_factory=dict)
    forks: dict[int, int] = field(default_factory=dict)
    path: list[int] = field(default_factory=list)  # the entries of `last` behind what is cached of it
    sequence: int = 0
    length: int = 0  # of all inputs together

    def shared(self, inputs: np.ndarray, scored: int, branches: bool) -> int:
        """How many tokens of `inputs` are in the tree or the cache; the last `scored` need logits, which no cache has."""
        common = common_length(self.last, inputs)
        if not branches:
            return common if self.path and common == len(self.last) else 0
        return min(common, len(inputs) - scored) if len(inputs) - scored < self.cached else common

    def add(self, number: int, inputs: np.ndarray, scored: int, shared: int) -> None:
        """Add the request `number`, whose first `shared` tokens are there, as `shared` says."""
        if shared < len(self.last) or not self.sequence:
            self.cached = min(self.cached, shared)
            self.path = self.path[: shared - self.cached]
            if shared < len(inputs):
                self.sequence = len(self.forks) + 1
                self.forks[self.sequence] = self.cached
                for entry in self.path:
                    self.owners[entry].append(self.sequence)
        for position in range(shared, len(inputs)):
            self.path.append(len(self.tokens))
            self.tokens.append(int(inputs[position]))
            self.positions.append(position)
            self.owners.append([self.sequence])
            self.outputs.append(False)
        self.last = inputs
        self.length += len(inputs)
        self.wanted[number] = self.path[len(inputs) - scored - self.cached :]
        for entry in self.wanted[number]:
            self.outputs[entry] = True


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    different = one[:shorter] != other[:shorter]
    return int(different.argmax()) if different.any() else shorter


def score_continuations(model: Model, requests: Sequence[Continuation], options: ContextOptions) -> Iterator[Scored]:
    """Yield likelihoods round by round, those of all `requests` in the end; `options.n_ctx` is not used.

    Raises NativeError when llama.cpp has no context this long, or computes NaN or infinity.
    """
    inputs = {i: np.concatenate([r.context, r.target[:-1]]).astype(np.int32) for i, r in enumerate(requests)}
    order = sorted(inputs, key=lambda number: inputs[number].tolist())
    longest = max(map(len, inputs.values()), default=1)
    with open_context(model, shared_options(options, longest + ROUND_TOKENS, MOST_SEQUENCES)) as context:
        tree = Round(np.empty(0, np.int32), 0)
        while order:
            tree = next_round(context, tree, inputs, requests, order)
            rows = decode_tree(context, tree.tokens, tree.positions, tree.owners, tree.outputs)
            likelihoods = _read(model.path, rows, tree, requests)
            yield Scored(likelihoods, len(tree.tokens), tree.length - len(tree.tokens))


def shared_options(options: ContextOptions, tokens: int, sequences: int) -> ContextOptions:
    """`options` for a cache of at least `tokens` that `sequences` share, and batches of ROUND_TOKENS."""
    return ContextOptions(
        **vars(options)
        | {"n_ctx": -(-tokens // CELLS) * CELLS, "n_sequences": sequences, "n_batch": ROUND_TOKENS, "shared": True}
    )


def next_round(
    context: Context,
    before: Round,
    inputs: dict[int, np.ndarray],
    requests: Sequence[Continuation],
    order: list[int],
) -> Round:
    """Take as many requests from the front of `order` as fit in a round, and prepare the cache for them."""
    branches = context.model.branches
    tree = Round(before.last, 0)
    first = order[0]
    if branches and before.sequence:
        tree.cached = len(before.last)
        tree.cached = tree.shared(inputs[first], len(requests[first].target), True)
        tree.last = before.last[: tree.cached]
        context.keep_sequence(before.sequence, tree.cached)
    else:
        tree.last = np.empty(0, np.int32)
        context.clear()
    taken = 0
    for number in order:
        scored = len(requests[number].target)
        shared = tree.shared(inputs[number], scored, branches)
        full = len(tree.tokens) + len(inputs[number]) - shared > ROUND_TOKENS or len(tree.forks) + 2 > MOST_SEQUENCES
        if taken and full:
            break
        tree.add(number, inputs[number], scored, shared)
        taken += 1
    del order[:taken]
    for sequence, count in tree.forks.items():
        if count:
            context.fork(0, sequence, count)
    return tree


def decode_tree(
    context: Context,
    tokens: Sequence[int],
    positions: Sequence[int],
    owners: Sequence[Sequence[int]],
    outputs: Sequence[bool],
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode entries batch by batch; yield each that has an output, and its logits (n_vocab,): a view."""
    for start in range(0, len(tokens), context.n_batch):
        part = slice(start, start + context.n_batch)
        context.decode(tokens[part], positions[part], owners[part], outputs[part])
        entries = [start + i for i, output in enumerate(outputs[part]) if output]
        if entries:
            yield from zip(entries, context.logits(len(entries)), strict=True)


def _read(
    path: str, rows: Iterator[tuple[int, np.ndarray]], tree: Round, requests: Sequence[Continuation]
) -> dict[int, Likelihood]:
    readers: dict[int, list[tuple[int, int]]] = {}
    found = {number: np.empty(len(entries)) for number, entries in tree.wanted.items()}
    greedy = dict.fromkeys(tree.wanted, True)
    for number, entries in tree.wanted.items():
        for place, entry in enumerate(entries):
            readers.setdefault(entry, []).append((number, place))
    work = np.empty(0, np.float32)
    for entry, row in rows:
        work = work if len(work) else np.empty_like(row)
        log_total, _ = log_sum_exp(row, work)
        if not np.isfinite(log_total):
            raise NativeError(f"{path}: the logits sum to {log_total}; the model is numerically broken")
        likeliest = int(row.argmax())
        for number, place in readers[entry]:
            token = int(requests[number].target[place])
            found[number][place] = row[token] - log_total
            greedy[number] &= token == likeliest
    return {number: Likelihood(values, greedy[number]) for number, values in found.items()}
