"""What a conversion wrote."""

from pathlib import Path

from pipeline.gguf_file.reader import open_gguf


def tensors_of(path: Path) -> dict[str, bytes]:
    model = open_gguf(path)
    return {name: model.read_raw(name).tobytes() for name in model.tensors}
