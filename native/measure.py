"""Measure one model for a comparison: chunk by chunk against a base's recorded logits, then one answer, timed.

One chunk of n_ctx tokens a decode, so that no more than one is lost when a run is interrupted; the numbers and the
speed are those of `native.evaluate`, since llama.cpp decodes 512 tokens at once in either case.
"""

import codecs
import os
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from native.errors import NativeError
from native.evaluate import decode_columns, scored_positions, text_chunks
from native.generate import SamplingOptions, decode_prompt, prompt_tokens, sample_tokens
from native.model import Context, ContextOptions, Model, load_model, open_context
from native.scoring import TokenScores, score_tokens


@dataclass(frozen=True)
class MeasurementStart:
    """Known before the first decode: how many chunks there are, and the bytes that llama.cpp allocates as KV cache."""

    chunks: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class MeasuredChunk:
    """`seconds` are those of decoding, without scoring."""

    number: int
    scores: TokenScores
    seconds: float


@dataclass(frozen=True)
class MeasuredAnswer:
    """The text that each token stands for, and the seconds that each token after the first took.

    failure: why there is no answer, such as a chat template that fails; None if there is one
    """

    pieces: list[str]
    seconds: list[float]
    failure: str | None = None


Measurement = Generator[MeasurementStart | MeasuredChunk | MeasuredAnswer, bool | None, None]


def measure(
    path: str,
    text: str,
    recorded: str,
    *,
    record: bool,
    first: int,
    chunks: int,
    options: ContextOptions,
    prompt: str,
    max_tokens: int,
) -> Measurement:
    """Yield a MeasurementStart, the chunks from number `first` on, and a MeasuredAnswer to `prompt` (temperature 0).

    The folder `recorded` holds the base's logits of each chunk: written if `record`, otherwise compared with. Send
    True in reply to a chunk to end the chunks there; `max_tokens` 0 leaves the answer out. Raises NativeError when
    llama.cpp cannot load or run the model, or when the text has fewer than two chunks.
    """
    with load_model(path, options.gpu_layers) as model:
        grid = text_chunks(model, text, options.n_ctx, chunks)
        with open_context(model, replace(options, n_batch=min(options.n_batch, options.n_ctx))) as context:
            yield MeasurementStart(len(grid), context.kv_cache_bytes)
            for number in range(first, len(grid)):
                chunk, seconds = _measure_chunk(context, grid[number], number, Path(recorded), record)
                if (yield MeasuredChunk(number, chunk, seconds)):
                    break
        if max_tokens:
            try:
                yield _answer(model, options, prompt, max_tokens)
            except NativeError as error:
                yield MeasuredAnswer([], [], str(error))


def _measure_chunk(
    context: Context, tokens: np.ndarray, number: int, recorded: Path, record: bool
) -> tuple[TokenScores, float]:
    context.clear()
    logits, targets, seconds = [], [], 0.0
    for positions, outputs in scored_positions(len(tokens), context.n_batch):
        started = time.perf_counter()
        decode_columns(context, tokens[np.newaxis], positions, outputs)
        if outputs.any():  # reading logits waits for the decode
            logits.append(context.logits(int(outputs.sum())).copy())
            targets.append(tokens[positions[outputs] + 1])
        seconds += time.perf_counter() - started
    mine, targeted = np.concatenate(logits), np.concatenate(targets)
    if record:
        write_logits(recorded, number, mine)
        return score_tokens(mine, targeted), seconds
    return score_tokens(mine, targeted, read_logits(recorded, number, mine.shape)), seconds


def logits_file(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06}.f32"


def write_logits(folder: Path, number: int, logits: np.ndarray) -> None:
    """Keep `logits`, float32 (scored tokens, n_vocab), of a chunk; the file is complete or absent."""
    path = logits_file(folder, number)
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        logits.tofile(file)
    os.replace(temporary, path)


def read_logits(folder: Path, number: int, shape: tuple[int, int]) -> np.ndarray:
    """A chunk's logits, mapped: float32 of `shape` (scored tokens, n_vocab). Raises NativeError if they are not that."""
    path = logits_file(folder, number)
    try:
        if path.stat().st_size != 4 * shape[0] * shape[1]:
            raise ValueError(f"{path.stat().st_size} bytes for {shape[0]} tokens of {shape[1]} logits")
        return np.memmap(path, np.float32, "r", shape=shape)
    except (ValueError, OSError) as error:
        raise NativeError(f"{path}: does not hold the source's logits for this vocabulary ({error})") from None


def _answer(model: Model, options: ContextOptions, prompt: str, max_tokens: int) -> MeasuredAnswer:
    tokens = prompt_tokens(model, [{"role": "user", "content": prompt}])
    with open_context(model, replace(options, n_ctx=len(tokens) + max_tokens, n_batch=512)) as context:
        decode_prompt(context, tokens, np.empty(0, np.int32))
        pieces, seconds, started = [], [], time.perf_counter()
        for token in sample_tokens(context, len(tokens), max_tokens, SamplingOptions(temperature=0)):
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
            if model.ends_generation(token):
                break
            pieces.append(model.piece(token))
    return MeasuredAnswer(decode_pieces(pieces), seconds[1:])


def decode_pieces(pieces: list[bytes]) -> list[str]:
    """The text of each token; a character that several tokens share stands with the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [decoder.decode(piece) for piece in pieces]
