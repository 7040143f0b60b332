"""safetensors files: the header is checked in full, a tensor's bytes are read when they are asked for.

Format: https://huggingface.co/docs/safetensors. The package of that name has no bfloat16 without torch.
"""

import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.convert.config import parse_object, shown
from pipeline.convert.stored_tensor import ITEM_SIZES, StoredTensor
from pipeline.errors import SurgeryError

LARGEST_HEADER = 100 * 10**6  # bytes; the format's own limit
LARGEST_RANK = 8


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, in its order. Raises SurgeryError when it is missing, truncated or contradicts itself.

    The tensors' ranges must cover the file's data without gap or overlap, as the format's own reader wants it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
            if length > min(size - 8, LARGEST_HEADER):
                raise SurgeryError(f"{path}: not a safetensors file, or it is truncated; get it anew")
            text = file.read(length).decode("utf-8")
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise SurgeryError(f"{path}: the safetensors header is damaged; get the file anew") from None
    try:
        header = parse_object(path, text)
    except SurgeryError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise SurgeryError(f"{path}: the safetensors header is damaged: {reason}; get the file anew") from None
    tensors = {
        name: _stored_tensor(path, name, entry, 8 + length, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _check_ranges(path, tensors, 8 + length, size)
    return tensors


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(
            shape
        ) <= LARGEST_RANK and all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            pass
        case _:
            raise SurgeryError(f"{path}: tensor {shown(name)} is described wrongly; get the file anew")
    if dtype not in ITEM_SIZES:
        raise SurgeryError(
            f"{path}: tensor {name} is stored as {dtype}; only {', '.join(ITEM_SIZES)} can be converted:"
            " use the model's float checkpoint"
        )
    if end - begin != prod(shape) * ITEM_SIZES[dtype]:
        raise SurgeryError(
            f"{path}: tensor {name} of shape {shown(shape)} takes {end - begin} bytes; get the file anew"
        )
    if data_start + end > file_size:
        raise SurgeryError(f"{path}: tensor {name} ends beyond the file; it is truncated, get it anew")
    offset = data_start + begin
    return StoredTensor(name, tuple(shape), dtype, path, offset, partial(_load, path, name, offset, end - begin))


def _check_ranges(path: Path, tensors: dict[str, StoredTensor], data_start: int, file_size: int) -> None:
    reached = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset or 0, tensor.nbytes)):
        if tensor.offset != reached:
            problem = "overlaps another tensor" if (tensor.offset or 0) < reached else "comes after bytes of no tensor"
            raise SurgeryError(f"{path}: tensor {tensor.name} {problem}; the header is damaged, get the file anew")
        reached += tensor.nbytes
    if reached != file_size:
        raise SurgeryError(f"{path}: has {file_size - reached} bytes after its last tensor; get the file anew")


def _load(path: Path, name: str, offset: int, count: int) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8, count=count, offset=offset)
    except OSError as error:
        raise SurgeryError(f"{path}: tensor {name} could not be read: {error.strerror}") from None
    if data.size != count:
        raise SurgeryError(f"{path}: tensor {name} could not be read whole; was the file changed meanwhile?")
    return data
