"""Continue many prompts at once, each until it ends: a token of every sequence a decode, common beginnings decoded once."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from native.errors import NativeError
from native.likelihood import CELLS, ROUND_TOKENS, Round, decode_tree, shared_options
from native.model import Context, ContextOptions, Model, open_context

TOGETHER = 16  # prompts: their caches are in memory at once


@dataclass(frozen=True)
class Prompt:
    """Continue `tokens`, (n,) with n >= 1, by up to `limit` tokens, or until a text of `until` comes, which is left out.

    `temperature` 0 takes the likeliest token; otherwise among the `top_k` likeliest (0: all), then the likeliest that
    together have probability `top_p`. `seed` is for this prompt alone.
    """

    tokens: np.ndarray
    limit: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: tuple[int, ...] = (0,)


class Completion:
    """A prompt's text as it grows."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt, self.text, self.count, self.ended = prompt, "", 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rng = np.random.default_rng(prompt.seed)

    def choose(self, logits: np.ndarray) -> int:
        return choose_token(logits, self.prompt, self._rng)

    def add(self, piece: bytes, *, last: bool) -> None:
        """Add what a token stands for; `last`: the model ended here."""
        self.count += not last
        last = last or self.count == self.prompt.limit
        self.text += self._decoder.decode(piece, final=last)
        found = [place for stop in self.prompt.until if (place := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        self.ended = last or bool(found)


def choose_token(logits: np.ndarray, prompt: Prompt, rng: np.random.Generator) -> int:
    """A token by the logits (n_vocab,), as `prompt` says."""
    if prompt.temperature <= 0:
        return int(logits.argmax())
    order = np.argsort(logits)[::-1][: prompt.top_k or len(logits)]
    probabilities = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / prompt.temperature)
    before = np.cumsum(probabilities) - probabilities
    kept = probabilities * (before <= prompt.top_p * probabilities.sum())
    return int(rng.choice(order, p=kept / kept.sum()))


@dataclass
class _Group:
    numbers: list[int] = field(default_factory=list)
    tree: Round = field(default_factory=lambda: Round(np.empty(0, np.int32), 0))
    sequences: dict[int, int] = field(default_factory=dict)  # of each prompt in the tree


def complete(model: Model, prompts: Sequence[Prompt], options: ContextOptions) -> Iterator[dict[int, str]]:
    """Yield texts by the number of their prompt, group by group; `options.n_ctx` is not used.

    Raises NativeError when llama.cpp has no context this long, or computes NaN or infinity.
    """
    needs = [len(prompt.tokens) + prompt.limit for prompt in prompts]
    cells = max([*needs, 8 * CELLS])
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].tokens.tolist())
    with open_context(model, shared_options(options, cells + ROUND_TOKENS, 2 * TOGETHER + 1)) as context:
        while order:
            group = _next_group(model, prompts, order, cells)
            context.clear()
            yield _complete_group(context, group, prompts)


def _next_group(model: Model, prompts: Sequence[Prompt], order: list[int], cells: int) -> _Group:
    """Take prompts from the front of `order`, as long as all that they may become has room in the cache."""
    group, room = _Group(), cells
    while order and len(group.numbers) < TOGETHER:
        tokens = prompts[order[0]].tokens.astype(np.int32)
        shared = (
            group.tree.shared(tokens, 1, True) if model.branches else 0
        )  # a state has been through all that follows
        needed = len(tokens) - shared + prompts[order[0]].limit
        if group.numbers and needed > room:
            break
        room -= needed
        number = order.pop(0)
        group.tree.add(number, tokens, 1, shared)
        group.sequences[number] = group.tree.sequence
        group.numbers.append(number)
    return group


def _complete_group(context: Context, group: _Group, prompts: Sequence[Prompt]) -> dict[int, str]:
    """Decode the prompts, then a token of each at a time."""
    tree, model = group.tree, context.model
    texts = {number: Completion(prompts[number]) for number in group.numbers}
    chosen: dict[int, int] = {}
    for entry, row in decode_tree(context, tree.tokens, tree.positions, tree.owners, tree.outputs):
        for number in group.numbers:
            if tree.wanted[number] == [entry]:
                chosen[number] = _choose(model, texts[number], row)
    own = {number: TOGETHER + 1 + i for i, number in enumerate(group.numbers)}  # one may go through another's prompt
    for number in group.numbers:
        context.fork(group.sequences[number], own[number], len(prompts[number].tokens) if model.branches else -1)
    for sequence in set(group.sequences.values()):
        context.forget(sequence)
    alive = group.numbers
    while True:
        for number in alive:
            token, text = chosen[number], texts[number]
            ended = model.ends_generation(token)
            spelled = b"" if ended else model.piece(token) if text.count else model.first_piece(token)
            text.add(spelled, last=ended)
            if texts[number].ended:
                context.forget(own[number])
        alive = [number for number in alive if not texts[number].ended]
        if not alive:
            return {number: text.text for number, text in texts.items()}
        positions = [len(prompts[number].tokens) + texts[number].count - 1 for number in alive]
        context.decode([chosen[n] for n in alive], positions, [[own[n]] for n in alive], [True] * len(alive))
        for number, row in zip(alive, context.logits(len(alive)), strict=True):
            chosen[number] = _choose(model, texts[number], row)


def _choose(model: Model, text: Completion, row: np.ndarray) -> int:
    if not np.isfinite(largest := row.max()):
        raise NativeError(f"{model.path}: the largest logit is {largest}; the model is numerically broken")
    return text.choose(row)
