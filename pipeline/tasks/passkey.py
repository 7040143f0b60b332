"""Is a number found that stands somewhere in a long text? No data needed: all of it follows from a seed.

The text and its filler are those of Mohtashami and Jaggi, Landmark attention, 2023; several numbers of which one is
asked for are the multi-key task of Hsieh et al., RULER, 2024. A number counts as found when it is, token by token, what
the model says: the likeliest continuation of the question's answer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from native.likelihood import Continuation
from pipeline.errors import UsageError
from pipeline.progress import Progress
from pipeline.tasks.items import Measured
from pipeline.tasks.session import Session
from pipeline.tasks.statistics import wilson

NAME = "passkey"
DEPTHS = (512, 2048, 4096)
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
SMALLEST_DEPTH = 256
OPENING = "There is important information hidden inside a lot of irrelevant text. Find it and memorize it."
FILLER = (
    " The grass is green.",
    " The sky is blue.",
    " The sun is yellow.",
    " Here we go.",
    " There and back again.",
)
OWNERS = ("Anna", "Boris", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
NEEDLES = (1, 4)  # RULER's single and multiple needles


@dataclass(frozen=True)
class PasskeyOptions:
    """`depths` in tokens of the whole text, `places` of the number asked for, as a share of the text before it.

    Each is asked `repeats` times, with one number in the text and with several.
    """

    depths: tuple[int, ...] = DEPTHS
    places: tuple[float, ...] = PLACES
    needles: tuple[int, ...] = NEEDLES
    repeats: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Hidden:
    """One question: the text up to the answer, and the answer."""

    depth: int
    place: float
    needles: int
    repeat: int
    text: str
    answer: str

    @property
    def name(self) -> str:
        return f"{self.depth}/{self.place:g}/{self.needles}/{self.repeat}"


def hide(session: Session, options: PasskeyOptions) -> list[Hidden]:
    """Every question of `options`, each text as long as its depth allows in the tokens of this model."""
    pieces = [OPENING, *FILLER, *(_needle(owner, "00000") + _question(owner) for owner in OWNERS)]
    lengths = dict(zip(pieces, map(len, session.tokenize(pieces, special=False)), strict=True))
    return [
        _hide(lengths, options.seed, depth, place, needles, repeat)
        for depth in options.depths
        for needles in options.needles
        for place in options.places
        for repeat in range(options.repeats)
    ]


def _hide(lengths: dict[str, int], seed: int, depth: int, place: float, needles: int, repeat: int) -> Hidden:
    """The numbers depend on seed and repeat alone: texts of one repeat are alike up to the first number."""
    rng = random.Random(f"{seed} {repeat}")
    owners = rng.sample(OWNERS, len(OWNERS))[:needles]
    numbers = [str(rng.randrange(10_000, 100_000)) for _ in owners]
    spent = lengths[OPENING] + sum(lengths[_needle(owner, "00000") + _question(owner)] for owner in owners)
    sentences: list[str] = []
    room = depth - spent - 8  # BOS, and what the answer's own tokens may be more
    while (room := room - lengths[FILLER[len(sentences) % len(FILLER)]]) >= 0:
        sentences.append(FILLER[len(sentences) % len(FILLER)])
    places = [place, *(rng.random() for _ in owners[1:])]
    at = [round(share * len(sentences)) for share in places]
    for number in sorted(range(len(owners)), key=lambda i: -at[i]):
        sentences.insert(at[number], _needle(owners[number], numbers[number]))
    text = OPENING + "".join(sentences) + _question(owners[0])
    return Hidden(depth, place, needles, repeat, text, f" {numbers[0]}")


def _needle(owner: str, number: str) -> str:
    return f" The pass key of {owner} is {number}. Remember it: {number} is the pass key of {owner}."


def _question(owner: str) -> str:
    return f"\n\nWhat is the pass key of {owner}? The pass key of {owner} is"


def ask_passkeys(session: Session, options: PasskeyOptions, progress: Progress) -> list[Measured]:
    """Which of all questions the model answers. Raises UsageError for depths that its context has no room for."""
    trained = session.facts.n_ctx_train
    for depth in options.depths:
        if not SMALLEST_DEPTH <= depth <= trained:
            raise UsageError.of("depths", depth, f"expected {SMALLEST_DEPTH} to {trained} tokens, this model's context")
    hidden = hide(session, options)
    contexts = session.tokenize([question.text for question in hidden], special=False)
    answers = session.tokenize([question.text + question.answer for question in hidden], special=False)
    bos = np.array([session.facts.bos] if session.facts.adds_bos else [], np.int32)
    requests = []
    for context, whole in zip(contexts, answers, strict=True):
        same = len(context)
        while not np.array_equal(whole[:same], context[:same]):  # the answer begins within the context's last token
            same -= 1
        requests.append(Continuation(np.r_[bos, whole[:same]].astype(np.int32), whole[same:]))
    found: dict[int, bool] = {}
    for part in session.answers(requests):
        found |= {number: answer.greedy for number, answer in part.items()}
        progress(len(found), len(requests), "")
    return [
        _measured(options, hidden, found, depth, needles) for needles in options.needles for depth in options.depths
    ]


def _measured(
    options: PasskeyOptions, hidden: Sequence[Hidden], found: dict[int, bool], depth: int, needles: int
) -> Measured:
    chosen = [i for i, question in enumerate(hidden) if (question.depth, question.needles) == (depth, needles)]
    values = tuple(float(found[i]) for i in chosen)
    kind = "one number" if needles == 1 else f"one of {needles} numbers"
    return Measured(
        task=f"{NAME}, {depth} tokens, {kind}",
        metric="found",
        values=values,
        names=tuple(hidden[i].name for i in chosen),
        total=float(np.mean(values)),
    )


@dataclass(frozen=True)
class PasskeyShare:
    """How many of the numbers at a depth, in tokens, and a place were found: a share with Wilson's 95 % interval."""

    needles: int
    depth: int
    place: float
    items: int
    found: float
    low: float
    high: float


def heat_map(measured: Sequence[Measured]) -> list[PasskeyShare]:
    """The share found at each depth and place, of questions alike."""
    values: dict[tuple[int, int, float], list[float]] = {}
    for one in measured:
        if one.metric == "found" and one.task.startswith(NAME):
            for name, value in zip(one.names, one.values, strict=True):
                depth, place, needles, _ = name.split("/")
                values.setdefault((int(needles), int(depth), float(place)), []).append(value)
    return [
        PasskeyShare(*at, len(found), float(np.mean(found)), *wilson(int(sum(found)), len(found)))
        for at, found in values.items()
    ]
