"""Operating on a 1.1-billion-parameter F16 GGUF of TinyLlama's shapes: time beyond copying it, and peak memory."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from benchmarks.decomposition import realistic_matrix
from benchmarks.timing import seconds

LAYERS, WIDTH, KV_WIDTH, FEED_FORWARD, VOCABULARY = 22, 2048, 256, 5632, 32000


def write_model(path: Path) -> None:
    """Random weights in TinyLlama's shapes; the attention's spectrum is the embedded model's, rows permuted by layer."""
    rng = np.random.default_rng(0)
    q, kv = (realistic_matrix(group, rng).astype(np.float16) for group in ("q", "kv"))
    noise = rng.standard_normal((VOCABULARY, WIDTH), dtype=np.float32).astype(np.float16) / 50
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(32)
    writer.add_head_count_kv(4)
    writer.add_tensor("token_embd.weight", noise)
    writer.add_tensor("output.weight", noise)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        rows = rng.permutation(2 * KV_WIDTH)
        writer.add_tensor(block + "attn_q.weight", q[rng.permutation(WIDTH)])
        writer.add_tensor(block + "attn_k.weight", kv[rows[:KV_WIDTH]])
        writer.add_tensor(block + "attn_v.weight", kv[rows[KV_WIDTH:]])
        writer.add_tensor(block + "attn_output.weight", noise[:WIDTH])
        for name, shape in {
            "gate": (FEED_FORWARD, WIDTH),
            "up": (FEED_FORWARD, WIDTH),
            "down": (WIDTH, FEED_FORWARD),
        }.items():
            writer.add_tensor(f"{block}ffn_{name}.weight", noise[: shape[0] * shape[1] // WIDTH].reshape(shape))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


def run() -> None:
    with tempfile.TemporaryDirectory(prefix="surgery-bench-") as folder:
        source, output = Path(folder) / "source.gguf", Path(folder) / "output.gguf"
        write_model(source)
        copying = sorted(seconds(lambda: shutil.copyfile(source, Path(folder) / "copy.gguf")) for _ in range(3))[1]
        (Path(folder) / "copy.gguf").unlink()
        print(f"{source.stat().st_size / 1e9:.2f} GB, 1.1 billion parameters; copying takes {copying:.1f} s")
        for threshold in (0.3, 0.9):
            command = [sys.executable, "-m", "pipeline", "operate", source, "-o", output, "--force", "--json"]
            result = subprocess.run(
                [*map(str, command), "--threshold", str(threshold)], stdout=subprocess.PIPE, check=True
            )
            report = json.loads(result.stdout)
            beyond = report["seconds"] - copying
            print(
                f"threshold {threshold}: {report['seconds']:.1f} s, {report['decomposition_seconds']:.1f} s of it decomposing;"
                f" beyond copying and decomposing {beyond - report['decomposition_seconds']:.1f} s;"
                f" peak memory {report['peak_rss_bytes'] / 1e6:.0f} MB"
            )
