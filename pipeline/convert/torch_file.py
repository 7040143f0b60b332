"""Checkpoints in torch's own format (pytorch_model.bin), read through torch, without running what they may contain."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.convert.stored_tensor import StoredTensor
from pipeline.errors import SurgeryError
from pipeline.extras import require


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, mapped into memory, not loaded. Raises SurgeryError when it is missing or damaged."""
    torch = require("torch", "hf", f"{path}: torch's own checkpoint format")
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    if not path.is_file():
        raise SurgeryError(f"{path}: no such file")
    try:
        # weights_only: a pickle may otherwise run any code.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SurgeryError(f"{path}: torch cannot read it as plain weights: {reason}") from None
    if not isinstance(loaded, dict):
        raise SurgeryError(f"{path}: holds a {type(loaded).__name__}; expected tensors by name")
    tensors = {}
    for name, tensor in loaded.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in names:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise SurgeryError(f"{path}: {name} is {kind}; only floating-point tensors can be converted")
        load = partial(_bytes, torch, tensor)
        tensors[name] = StoredTensor(name, tuple(tensor.shape), names[tensor.dtype], path, None, load)
    return tensors


def _bytes(torch: Any, tensor: Any) -> np.ndarray:
    data: np.ndarray = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return data
