"""Made-up statistics and importance matrices of the tiny model: files of the right form, with random numbers."""

from pathlib import Path

import gguf
import numpy as np

from pipeline.gguf_file.reader import GGUFModel
from pipeline.observations.moments import MomentSums
from pipeline.observations.statistics_file import CalibrationOrigin, write_calibration
from pipeline.projection import ATTENTION_INPUT


def write_made_up_statistics(path: Path, width: int = 8) -> Path:
    """Statistics of two layers over one chunk, of no model."""
    rng = np.random.default_rng(0)
    sums = MomentSums()
    x = rng.standard_normal((20, width))
    moments = {"sum": x.sum(axis=0), "second_moment": x.T @ x, "received": x.T @ x, "count": np.array([20.0])}
    products = {
        "blk.0.attn_q.weight": (np.square(x).sum(axis=0), np.array([20.0])),
        "blk.1.ffn_up_exps.weight": (np.square(x[:3]).ravel(), np.array([1.0, 0.0, 2.0])),
    }
    sums.add(1, {layer: {ATTENTION_INPUT: moments} for layer in range(2)}, products)
    source = CalibrationOrigin("tiny.gguf", "0" * 64, "1" * 64, "text.txt", "2" * 64, 1, 20)
    write_calibration(path, source, sums, rope="norm", text="a text", force=True)
    return path


def write_made_up_importance(path: Path, model: GGUFModel) -> dict[str, np.ndarray]:
    """An importance matrix in llama.cpp's form for every matrix of `model`, by the gguf package: the mean squares."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["test"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    rng = np.random.default_rng(0)
    means = {}
    for info in model.tensors.values():
        if len(info.shape) == 2:
            sums = rng.exponential(100, (1, info.shape[1])).astype(np.float32)
            writer.add_tensor(f"{info.name}.in_sum2", sums)
            writer.add_tensor(f"{info.name}.counts", np.full((1, 1), 50, np.float32))
            means[info.name] = sums[0] / np.float32(50)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return means
