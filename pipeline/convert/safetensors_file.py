"""safetensors files: the header is checked in full, a tensor's bytes are read when they are asked for.

Format: https://huggingface.co/docs/safetensors. The package of that name has no bfloat16 without torch.
"""

import json
import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.convert.stored_tensor import ITEM_SIZES, StoredTensor
from pipeline.errors import SurgeryError

LARGEST_HEADER = 100 * 10**6  # bytes; the format's own limit


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, in its order. Raises SurgeryError when it is missing, truncated or contradicts itself."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
            if length > min(size - 8, LARGEST_HEADER):
                raise SurgeryError(f"{path}: not a safetensors file, or it is truncated; get it anew")
            header = json.loads(file.read(length))
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise SurgeryError(f"{path}: the safetensors header is damaged; get the file anew") from None
    if not isinstance(header, dict):
        raise SurgeryError(f"{path}: the safetensors header is damaged; get the file anew")
    data_start = 8 + length
    return {
        name: _stored_tensor(path, name, entry, data_start, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = str(entry["dtype"]), tuple(map(int, entry["shape"])), entry["data_offsets"]
        begin, end = int(begin), int(end)
    except (KeyError, TypeError, ValueError):
        raise SurgeryError(f"{path}: tensor {name} is described wrongly; get the file anew") from None
    if dtype not in ITEM_SIZES:
        raise SurgeryError(
            f"{path}: tensor {name} is stored as {dtype}; only {', '.join(ITEM_SIZES)} can be converted:"
            " use the model's float checkpoint"
        )
    if begin < 0 or end - begin != prod(shape) * ITEM_SIZES[dtype] or min(shape, default=1) < 0:
        raise SurgeryError(f"{path}: tensor {name} of shape {shape} takes {end - begin} bytes; get the file anew")
    if data_start + end > file_size:
        raise SurgeryError(f"{path}: tensor {name} ends beyond the file; it is truncated, get it anew")
    offset = data_start + begin
    return StoredTensor(name, shape, dtype, path, offset, partial(_load, path, name, offset, end - begin))


def _load(path: Path, name: str, offset: int, count: int) -> np.ndarray:
    data = np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
    if data.size != count:
        raise SurgeryError(f"{path}: tensor {name} could not be read whole; was the file changed meanwhile?")
    return data
