"""The task files of llama.cpp's perplexity tool, read and scored by its rules, so that scores are the same item by item.

The rules (tools/perplexity/perplexity.cpp): text and ending are one string with a blank between; what all endings of an
item have in common is not scored; the mean log p of the other tokens decides. With fewer items than the file has, they
are drawn as the tool draws them: std::mt19937 seeded with 1 (and libstdc++'s distribution, for HellaSwag).
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from native.likelihood import Continuation, common_length
from pipeline.errors import SurgeryError, UsageError, no_file
from pipeline.progress import Progress
from pipeline.tasks.items import Measured
from pipeline.tasks.session import Session

ENDINGS = 4  # of a HellaSwag item
HELLASWAG_ITEMS = 400  # unless it is told how many, the tool takes so many
MOST_ANSWERS = 100
SHORTEST_END = 3  # tokens: WinoGrande scores what comes after the choice only if more do


@dataclass(frozen=True)
class Choice:
    """An item of the file: `texts` to choose from, and which are `right`.

    `heads`: for WinoGrande, each text up to the end of its choice.
    """

    number: int
    texts: tuple[str, ...]
    right: tuple[bool, ...]
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskFile:
    """A file's items in the order in which the tool takes them."""

    kind: str
    path: Path
    items: tuple[Choice, ...]


def read_hellaswag(path: Path, limit: int | None) -> TaskFile:
    """Six lines an item: the context, the number of the right ending, four endings. Raises SurgeryError otherwise."""
    lines = _text(path, "hellaswag").split("\n")
    if len(lines) % 6 or lines == [""]:
        raise SurgeryError(
            f"`hellaswag={path}`: has {len(lines)} lines; expected six an item: context, label, 4 endings"
        )
    items = []
    for start in range(0, len(lines), 6):
        context, label, *endings = lines[start : start + 6]
        if label.strip() not in ("0", "1", "2", "3"):
            raise SurgeryError(
                f"`hellaswag={path}`: line {start + 2}: expected the right ending, 0 to 3, not {label[:20]!r}"
            )
        right = tuple(int(label) == i for i in range(ENDINGS))
        items.append(Choice(start // 6, tuple(f"{context} {ending}" for ending in endings), right))
    return TaskFile("hellaswag", path, tuple(_drawn_one_by_one(items, min(limit or HELLASWAG_ITEMS, len(items)))))


def read_winogrande(path: Path, limit: int | None) -> TaskFile:
    """A line an item: number, sentence with `_`, two choices, 1 or 2. Raises SurgeryError otherwise.

    The tool reads no line that a line break does not end, after it has dropped the file's last one: nor does this.
    """
    items = []
    for number, line in enumerate(_text(path, "winogrande").split("\n")[:-1]):
        where = f"`winogrande={path}`: line {number + 1}"
        fields = _comma_separated(line)
        if fields is None:
            raise SurgeryError(f"{where}: expected number,sentence,choice,choice,1 or 2")
        _, sentence, first, second, answer = fields
        before, blank, after = sentence.partition("_")
        if not blank:
            raise SurgeryError(f"{where}: the sentence has no _ for the choices")
        if answer.strip()[:1] not in ("1", "2"):
            raise SurgeryError(f"{where}: expected 1 or 2 as the answer, not {answer[:20]!r}")
        texts = tuple(before + choice + after for choice in (first, second))
        right = (answer.strip()[0] == "1", answer.strip()[0] == "2")
        items.append(Choice(number, texts, right, (before + first, before + second)))
    if not items:
        raise SurgeryError(f"`winogrande={path}`: holds no items")
    return TaskFile("winogrande", path, tuple(_drawn(items, limit)))


def read_multiple_choice(path: Path, limit: int | None) -> TaskFile:
    """The tool's binary format, little-endian: how many items, where each is, then question and answers.

    Raises SurgeryError when it is cut off or something else.
    """
    if not path.is_file():
        raise UsageError(f"`multiple_choice={path}`: {no_file(path)}; name a file in llama.cpp's binary format")
    data = path.read_bytes()
    try:
        (count,) = struct.unpack_from("<I", data)
        if not 0 < count <= len(data) // 4:
            raise ValueError(f"it would have {count} items")
        at, items = 4 + 4 * count, []
        for number in range(count):
            item, at = _read_item(data, at, number)
            items.append(item)
    except (struct.error, ValueError) as error:
        raise SurgeryError(
            f"`multiple_choice={path}`: not in llama.cpp's binary format, or cut off ({error})"
        ) from None
    return TaskFile("multiple-choice", path, tuple(_drawn(items, limit)))


def _read_item(data: bytes, at: int, number: int) -> tuple[Choice, int]:
    question, at = _read_string(data, at)
    first: tuple[tuple[str, ...], tuple[bool, ...]] | None = None
    for _ in range(2):  # with one right answer, and with several, which the tool does not use
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        if count > MOST_ANSWERS:
            raise ValueError(f"item {number} would have {count} answers")
        answers = []
        for _ in range(count):
            answer, at = _read_string(data, at)
            answers.append(answer)
        labels = struct.unpack_from(f"<{count}i", data, at)
        at += 4 * count
        first = first or (tuple(answers), tuple(label == 1 for label in labels))
    assert first is not None
    if not question or not first[0] or "" in first[0]:
        raise ValueError(f"item {number} has no question, or no choices, or an empty one")
    return Choice(number, tuple(f"{question} {answer}" for answer in first[0]), first[1]), at


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", data, at)
    raw = data[at + 4 : at + 4 + length]
    if len(raw) < length:
        raise ValueError(f"a text of {length} bytes at byte {at}")
    return raw.decode("utf-8"), at + 4 + length


def _text(path: Path, argument: str) -> str:
    if not path.is_file():
        raise UsageError(
            f"`{argument}={path}`: {no_file(path)}; name a file in the format of llama.cpp's perplexity tool"
        )
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise SurgeryError(f"`{argument}={path}`: not UTF-8 text (byte {error.start}); convert it first") from None


def _comma_separated(line: str) -> tuple[str, ...] | None:
    """The five fields of a line; commas between quotes separate none. The quotes of the sentence alone are dropped."""
    commas: list[int] = []
    quoted = False
    for place, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted and len(commas) < 4:
            commas.append(place)
    if len(commas) < 4:
        return None
    edges = [-1, *commas, len(line)]
    fields = [line[start + 1 : end] for start, end in pairwise(edges)]
    if fields[1].startswith('"'):
        fields[1] = fields[1][1:-1]
    return tuple(fields)


def _mersenne_twister() -> Callable[[], int]:
    """std::mt19937 with seed 1: 32 bits a call."""
    state = np.random.RandomState(1)
    return lambda: int(state.randint(0, 2**32, dtype=np.uint32))


def _drawn_one_by_one(items: list[Choice], count: int) -> list[Choice]:
    """`count` of `items`, each drawn from those left, as std::uniform_int_distribution of libstdc++ draws."""
    left, random = list(items), _mersenne_twister()
    drawn: list[Choice] = []
    while len(drawn) < count:
        n = len(left)
        product = random() * n  # Lemire, Fast random integer generation in an interval, 2019
        while product % 2**32 < (2**32 - n) % n:
            product = random() * n
        drawn.append(left.pop(product >> 32))
    return drawn


def _drawn(items: list[Choice], count: int | None) -> list[Choice]:
    """All `items` in order, or `count` of them as the tool draws them, in single precision."""
    if count is None or count >= len(items):
        return items
    left, drawn, random = list(range(len(items))), [], _mersenne_twister()
    for _ in range(count):
        share = np.float32(2.0**-32) * np.float32(random()) * np.float32(len(left))
        place = min(int(share), len(left) - 1)
        drawn.append(items[left[place]])
        left[place] = left[-1]
        left.pop()
    return drawn


READERS = {"hellaswag": read_hellaswag, "winogrande": read_winogrande, "multiple_choice": read_multiple_choice}

Span = tuple[Continuation, ...]
"""What a text's score is the sum of."""


def ask_file(session: Session, file: TaskFile, progress: Progress) -> list[Measured]:
    """Which items the model has right. Raises SurgeryError for an item that its rules cannot score."""
    spans: list[tuple[Choice, list[tuple[Span, int]]]] = []
    for item in file.items:
        tokens = session.tokenize(item.texts, special=False, whole=True)
        if item.heads:
            heads = [len(head) for head in session.tokenize(item.heads, special=False, whole=True)]
            scored = _winogrande_spans(tokens, heads)
        else:
            shared = min(common_length(tokens[0], other) for other in tokens[1:]) if len(tokens) > 1 else len(tokens[0])
            scored = [(_span(ids, shared, len(ids)), len(ids) - shared) for ids in tokens]
        longest = max(map(len, tokens))
        if longest > session.facts.n_ctx_train:
            raise SurgeryError(
                f"{file.path}: item {item.number} has {longest} tokens, the model {session.facts.n_ctx_train}"
            )
        if any(not len(part.context) or not len(part.target) for span, _ in scored for part in span):
            raise SurgeryError(
                f"{file.path}: item {item.number}: its choices begin or end alike, so none can be scored"
            )
        spans.append((item, scored))
    requests = [part for _, scored in spans for span, _ in scored for part in span]
    totals: dict[int, float] = {}
    for found in session.answers(requests):
        totals |= {number: answer.total for number, answer in found.items()}
        progress(len(totals), len(requests), file.kind)
    values, start = [], 0
    for item, scored in spans:
        means = []
        for span, count in scored:
            total = sum(totals[start + i] for i in range(len(span)))
            means.append(total / count if count else -np.inf)
            start += len(span)
        values.append(float(item.right[_chosen(means, winogrande=bool(item.heads))]))
    return [
        Measured(
            task=f"{file.kind} {file.path.name}",
            metric="acc_norm",
            values=tuple(values),
            names=tuple(str(item.number) for item, _ in spans),
            total=float(np.mean(values)),
        )
    ]


def _chosen(means: Sequence[float], *, winogrande: bool) -> int:
    """The best of all, the first among equals; in WinoGrande the second."""
    return int(not means[0] > means[1]) if winogrande else int(np.argmax(means))


def _span(tokens: np.ndarray, start: int, end: int) -> Span:
    return (Continuation(tokens[:start], tokens[start:end]),)


def _winogrande_spans(tokens: Sequence[np.ndarray], heads: Sequence[int]) -> list[tuple[Span, int]]:
    """What the tool scores of both sentences: what follows the choice if that is enough, without the last token.

    Where it is not, the tool takes the first token of the second choice by the logits that stand behind the whole first
    sentence (its source calls that a flaw): so does this, for the scores to be the same.
    """
    shared = common_length(tokens[0], tokens[1])
    skips = all(len(ids) - shared > SHORTEST_END for ids in tokens)
    spans: list[tuple[Span, int]] = []
    for number, (ids, head) in enumerate(zip(tokens, heads, strict=True)):
        start = head if skips else shared
        end = len(ids) - (1 if len(ids) - start > 1 else 0)
        span = _span(ids, start, end) if end > start else ()
        if number and not skips and span:
            displaced = Continuation(tokens[0], ids[start : start + 1])
            span = (displaced, *(_span(ids, start + 1, end) if end > start + 1 else ()))
        spans.append((span, end - start))
    return spans
