"""Measure one model for a comparison: the chunks of its texts, scored or recorded, then one answer, timed."""

import codecs
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from native.errors import NativeError
from native.evaluate import EvaluationStart, ModelRun, ScoredChunk, TextChunks, score_texts
from native.generate import SamplingOptions, decode_prompt, prompt_tokens, sample_tokens
from native.model import ContextOptions, Model, load_model, open_context


@dataclass(frozen=True)
class MeasuredAnswer:
    """The text that each token stands for, and the seconds that each token after the first took.

    failure: why there is no answer, such as a chat template that fails; None if there is one
    """

    pieces: list[str]
    seconds: list[float]
    failure: str | None = None


Measurement = Generator[EvaluationStart | ScoredChunk | MeasuredAnswer, bool | None, None]


def measure(
    run: ModelRun, texts: Sequence[TextChunks], *, prompt: str, max_tokens: int, record: bool = False
) -> Measurement:
    """As `native.evaluate.score_texts` of one model, whose logits are kept if `record`, and then a MeasuredAnswer.

    That is to `prompt`, at temperature 0; `max_tokens` 0 leaves it out. Raises as `evaluate_chunks` does.
    """
    with load_model(run.path, run.options.gpu_layers) as model:
        yield from score_texts([(model, run.options)], texts, record=record)
        if max_tokens:
            try:
                yield _answer(model, run.options, prompt, max_tokens)
            except NativeError as error:
                yield MeasuredAnswer([], [], str(error).removeprefix(f"{run.path}: "))


def _answer(model: Model, options: ContextOptions, prompt: str, max_tokens: int) -> MeasuredAnswer:
    tokens = prompt_tokens(model, [{"role": "user", "content": prompt}])
    max_tokens = min(max_tokens, max(1, model.n_ctx_train - len(tokens)))  # no more than it was made for
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
