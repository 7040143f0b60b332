"""A text that a model writes itself, to be calibrated on when none is at hand; kept in the user's cache folder.

It is kept wave by wave in a file that is only ever added to, so a run that was killed goes on where it was, and a
longer text begins with the shorter one.
"""

import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from native.isolated import isolated
from native.model import ContextOptions
from native.writing import WritingOptions, WrittenWave, write_waves
from pipeline.calibration.cache import cache_folder
from pipeline.errors import SurgeryError, UsageError
from pipeline.files.journal import add_record, read_journal
from pipeline.files.open_file import lock
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import Text
from pipeline.progress import Progress, silent
from pipeline.revision import revisions

SELF_TEXT = "self"
RECIPE = WritingOptions(tokens=528, passages=(132, 528))
"""Chosen by measurement, see docs/log.md."""
REPETITIVE = 0.5  # the share of a wave that its most frequent token may have
TRIAL = 8  # decodes after which the time for all is estimated


class Row(NamedTuple):
    """A row that was written, and its negative log-likelihood in nats."""

    text: str
    nats: float


Waves = dict[tuple[int, int], list[Row]]
"""Rows that were written together, by the first one's number and how many they are."""


class TooSlow(SurgeryError):
    """Writing would take longer than it may."""


def is_self(name: str) -> bool:
    """Whether `name` stands for a text that the model writes: `self`, or `self:SEED`."""
    return name == SELF_TEXT or name.startswith(SELF_TEXT + ":")


def write_self_text(
    model: GGUFModel,
    name: str = SELF_TEXT,
    *,
    chunks: int,
    threads: int = 0,
    progress: Progress = silent,
    announce: Callable[[int, float], None] = lambda tokens, seconds: None,
    most_seconds: float | None = None,
) -> Text:
    """A text of `chunks` chunks that `model` writes, from the cache as far as it is there: a row of RECIPE a chunk.

    `name` is `self` or, with another seed than 0, `self:SEED`. `progress` counts tokens; `announce` hears, when some
    have been written, how many are left and how many seconds they will take. Raises UsageError for a seed out of range,
    TooSlow when writing would take more than `most_seconds`, SurgeryError when the model repeats one token, NativeError
    when it cannot write.
    """
    recipe = replace(RECIPE, seed=own_seed(name))
    ledger = ledger_path(model, recipe)
    rows = _all_rows(read_waves(ledger), chunks)
    if rows is None:

        def waiting() -> None:
            progress(0, chunks * recipe.tokens, "another process writes; waiting for it")

        with lock(ledger.with_suffix(".lock"), waiting):
            rows = _write_missing(model, recipe, ledger, chunks, threads, progress, announce, most_seconds)
    return Text(name, "\n\n".join(row.text for row in rows), coherent=coherent_row(rows).text)


def coherent_row(rows: Sequence[Row]) -> Row:
    """Of the rows with the longest passages the likeliest, in nats a byte of its compressed text; the last if none has.

    What a small model writes goes astray in many rows, and what errors cost there is not what they cost elsewhere, see
    docs/log.md. Compressed, since a row that repeats itself is likely as well.
    """
    longest = RECIPE.passages.index(max(RECIPE.passages))
    return min(
        rows[longest :: len(RECIPE.passages)] or rows[-1:],
        key=lambda row: row.nats / len(zlib.compress(row.text.encode())),
    )


def _all_rows(waves: Waves, rows: int) -> list[Row] | None:
    """The first `rows` rows, None unless all are there: in waves of one width, the last one of what is left."""
    for width in {count for first, count in waves if first == 0}:
        tiles = _tiles(rows, width)
        if all(tile in waves for tile in tiles):
            return [row for tile in tiles for row in waves[tile]]
    return None


def _tiles(rows: int, width: int) -> list[tuple[int, int]]:
    return [(first, min(width, rows - first)) for first in range(0, rows, width)]


def _write_missing(
    model: GGUFModel,
    recipe: WritingOptions,
    ledger: Path,
    rows: int,
    threads: int,
    progress: Progress,
    announce: Callable[[int, float], None],
    most_seconds: float | None,
) -> list[Row]:
    """All rows, those that the ledger lacks written now."""
    waves = read_waves(ledger)
    options = ContextOptions(threads=threads)
    events = isolated(write_waves, str(model.path), rows, list(waves), recipe, options)
    width = next(events)
    tiles = _tiles(rows, width)
    total = rows * recipe.tokens
    done = sum(count for first, count in tiles if (first, count) in waves) * recipe.tokens
    started, heard = time.monotonic(), 0
    for event in events:
        if isinstance(event, WrittenWave):
            model.require_unchanged(by_name=True)  # llama.cpp opened it by its name
            _require_variety(model, event)
            waves[event.first, len(event.texts)] = [*map(Row, event.texts, event.nats)]
            add_record(ledger, {"first": event.first, "texts": event.texts, "nats": event.nats})
            done += len(event.texts) * recipe.tokens
            continue
        heard += 1
        if heard == 1:
            before, started = event, time.monotonic()  # the first decode warms up
            progress(done, total, "going on" if done else "")
        elif heard == TRIAL:
            seconds = (total - done) * (time.monotonic() - started) / max(event - before, 1)
            if most_seconds is not None and seconds > most_seconds:
                events.close()
                raise TooSlow(f"{model.path}: would write for {seconds / 60:,.0f} minutes on this machine")
            announce(total - done, seconds)
        progress(done + event, total, "")
    return [row for tile in tiles for row in waves[tile]]


def own_seed(name: str) -> int:
    """The seed in `self:SEED`, 0 in `self`. Raises UsageError for one out of range."""
    seed = "0" if name == SELF_TEXT else name.removeprefix(SELF_TEXT + ":")
    if not seed.isdecimal() or int(seed) >= 2**32:
        raise UsageError(f"{name}: expected {SELF_TEXT}, or {SELF_TEXT}:SEED with a seed from 0 to {2**32 - 1}")
    return int(seed)


def ledger_path(model: GGUFModel, recipe: WritingOptions) -> Path:
    """Where what `model` wrote by `recipe` is kept: a name made of the model's hash, the recipe and the code."""
    facts = {"model": model.sha256(), "code": revisions("writing"), **asdict(recipe)}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / f"self-{name}.jsonl"


def read_waves(ledger: Path) -> Waves:
    """The rows of each wave that was finished."""
    return {
        (wave["first"], len(wave["texts"])): [*map(Row, wave["texts"], wave["nats"])] for wave in read_journal(ledger)
    }


def _require_variety(model: GGUFModel, wave: WrittenWave) -> None:
    counts = Counter(token for row in wave.tokens for token in row)
    ((token, most),) = counts.most_common(1)
    if most > REPETITIVE * counts.total():
        raise SurgeryError(
            f"{model.path}: writes one token over and over ({most / counts.total():.0%} of its text is token {token});"
            " name a text to calibrate on"
        )
