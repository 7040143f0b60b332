"""Writing a text to calibrate on against taking its statistics, token for token, on the embedded model."""

from collections import deque

from benchmarks.timing import in_turn, spread
from native.capture import capture_moments
from native.model import ContextOptions
from native.writing import write_waves
from pipeline.attention import find_attention
from pipeline.calibration.calibrate import CHUNK_SIZE, watched_inputs
from pipeline.calibration.self_text import RECIPE
from pipeline.inputs.models import EMBEDDED_NAME, open_model
from pipeline.inputs.texts import CALIBRATION_TEXT, read_text

CHUNKS = 8
ROWS = 32  # a wave


def run() -> None:
    model, text = open_model(EMBEDDED_NAME), read_text(CALIBRATION_TEXT).content
    path, watched = str(model.path), watched_inputs(find_attention(model))
    options = ContextOptions(n_ctx=CHUNK_SIZE, n_batch=CHUNK_SIZE)

    def write() -> None:
        deque(write_waves(path, ROWS, [], RECIPE, ContextOptions()), maxlen=0)

    def take() -> None:
        deque(capture_moments(path, text, watched, chunks=CHUNKS, skip=0, options=options), maxlen=0)

    written, taken, ratios = in_turn(write, take, rounds=2)
    wrote, took = ROWS * RECIPE.tokens / written, CHUNKS * CHUNK_SIZE / taken
    by_token = [ratio * ROWS * RECIPE.tokens / (CHUNKS * CHUNK_SIZE) for ratio in ratios]
    print(f"{wrote:,.0f} tokens/s written, statistics of {took:,.0f}; {spread(by_token)} of their speed")
