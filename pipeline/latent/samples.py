"""Inputs of every attention block over some chunks of the text that a model was calibrated on, in a temporary file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from native.inputs import capture_inputs
from native.isolated import isolated
from native.model import ContextOptions
from pipeline.attention import find_attention
from pipeline.gguf_file.reader import GGUFModel
from pipeline.observations.statistics_file import Calibration
from pipeline.progress import Progress

CHUNKS = 32


@dataclass(frozen=True)
class InputSamples:
    """`inputs`: (layers, chunks, n_ctx, d), float16 in a file."""

    inputs: np.ndarray

    def of_layer(self, layer: int) -> np.ndarray:
        """The normalised inputs of a layer's attention block, float32 (chunks, n_ctx, d)."""
        return self.inputs[layer].astype(np.float32)


@contextmanager
def sample_inputs(
    model: GGUFModel, calibration: Calibration, threads: int, progress: Progress
) -> Iterator[InputSamples]:
    """Run `model` over up to CHUNKS chunks, evenly spread over those that were calibrated on.

    `progress` counts chunks. Raises NativeError when llama.cpp cannot run or observe the model.
    """
    source = calibration.origin
    count = min(CHUNKS, source.chunk_count)
    chunks = [i * source.chunk_count // count for i in range(count)]
    attention = find_attention(model)
    layers = {projections["q"].tensor: layer for layer, projections in attention.layers.items()}
    width = attention.layers[0]["q"].columns
    n = source.chunk_size
    options = ContextOptions(n_ctx=n, n_batch=n, threads=threads)
    with tempfile.TemporaryFile() as file:  # without a name: nothing of it stays, however this process ends
        inputs = np.memmap(file, np.float16, "w+", shape=(len(layers), count, n, width))
        captured = isolated(capture_inputs, str(model.path), calibration.text.content, layers, chunks, options)
        for done, by_layer in enumerate(captured):
            for layer, values in by_layer.items():
                inputs[layer, done] = values
            progress(done + 1, count, "")
        yield InputSamples(inputs)
        del inputs
