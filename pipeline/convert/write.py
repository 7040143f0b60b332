"""A checkpoint written as a GGUF file, a tensor at a time."""

import time
from pathlib import Path
from typing import Any

from pipeline.gguf_file.reader import GGUFModel
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.progress import Progress, silent
from pipeline.resources import peak_rss_bytes


def write_model(model: GGUFModel, output: Path, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Write `model` to `output`; the result has the keys that `surgery convert --json` prints.

    `progress` counts the bytes of tensors. Raises UsageError and SurgeryError as `create_gguf` does.
    """
    started = time.perf_counter()
    with create_gguf(
        output,
        model.metadata.values(),
        [TensorDeclaration(t.name, t.shape, t.type) for t in model.tensors.values()],
        alignment=model.alignment,
        force=force,
        sources=model.paths,
        progress=progress,
    ) as writer:
        for name in model.tensors:
            writer.copy_from(model, name)
    types = sorted({info.type.name for info in model.tensors.values() if len(info.shape) > 1})
    return {
        "source": model.name,
        "output": str(output),
        "architecture": model.architecture,
        "types": types,
        "tensors": len(model.tensors),
        "parameters": sum(info.parameters for info in model.tensors.values()),
        "pre_tokenizer": model.get("tokenizer.ggml.pre"),
        "output_bytes": output.stat().st_size,
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": peak_rss_bytes(),
    }
