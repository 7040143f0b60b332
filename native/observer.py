"""What watches llama.cpp compute: it shows every node of its graph to a callback, before and after it is computed."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import llama_cpp
import numpy as np

from native.errors import NativeError
from native.evaluate import decode_columns
from native.library import GGMLTensor, op_number
from native.model import Context


class GraphObserver(ABC):
    """Give `callback` to the context. What `receive` raises must not cross C, so `decode` raises it."""

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._product, self._routed_product = op_number("MUL_MAT"), op_number("MUL_MAT_ID")
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._observe)

    @abstractmethod
    def recognise(self, node: GGMLTensor) -> str | int | None:
        """A name for a node that is wanted once it is computed; None for all others."""

    @abstractmethod
    def receive(self, name: Any, node: GGMLTensor) -> None:
        """Take a computed node that was recognised by this name."""

    def weight_of(self, node: GGMLTensor) -> str | None:
        """The name of the weight in a product of a weight with float32 activations; None for other nodes.

        Products with the experts that a token is routed to are among them, see `routed_inputs`.
        """
        if node.op not in (self._product, self._routed_product):
            return None
        name: bytes = GGMLTensor.from_address(node.src[0]).name
        if not name.endswith(b".weight") or GGMLTensor.from_address(node.src[1]).type != llama_cpp.GGML_TYPE_F32:
            return None
        return name.decode()

    def is_routed(self, node: GGMLTensor) -> bool:
        """Whether a product is with the experts that each token is routed to."""
        return node.op == self._routed_product

    def decode(self, context: Context, tokens: np.ndarray, outputs: np.ndarray | None = None) -> None:
        """Decode one chunk of token ids, (n,), in an empty cache, asking for logits where `outputs` (n,) says.

        By default for all: else the last layer would see only the tokens that have them.
        """
        context.clear()
        n = len(tokens)
        decode_columns(context, tokens[np.newaxis], np.arange(n), np.ones(n, bool) if outputs is None else outputs)
        if self._error:
            raise self._error

    def _observe(self, address: int, ask: bool, user_data: Any) -> bool:
        """The callback. False on the first call means: not wanted; on the second: stop."""
        node = GGMLTensor.from_address(address)
        try:
            name = self.recognise(node)
            if name is not None and not ask:
                self.receive(name, node)
        except Exception as error:
            self._error = error
            return False
        return name is not None


def product_inputs(node: GGMLTensor) -> np.ndarray:
    """The activations that a product multiplies its weight with, see `node_values`: (matrices, tokens, columns).

    A weight of several matrices, such as one for each head, has as many; else all tokens are of one.
    """
    values = node_values(GGMLTensor.from_address(node.src[1]))
    matrices = GGMLTensor.from_address(node.src[0]).ne[2]
    if values.shape[0] == 1 and values.shape[1] == matrices > 1:
        return values[0]
    if matrices != 1:
        raise NativeError(f"{node.name.decode()}: {matrices} matrices for inputs of shape {values.shape}")
    return values.reshape(1, -1, values.shape[-1])


def routed_inputs(node: GGMLTensor) -> tuple[np.ndarray, np.ndarray]:
    """Of a product with experts: the activations, (n, columns), and the number of the expert that each goes to, (n,)."""
    values = node_values(GGMLTensor.from_address(node.src[1]))[0]  # (tokens, 1 or experts of a token, columns)
    experts = _array(GGMLTensor.from_address(node.src[2]), llama_cpp.GGML_TYPE_I32, np.int32)[0, 0]
    repeated = np.broadcast_to(values, (*experts.shape, values.shape[-1]))
    return repeated.reshape(-1, values.shape[-1]), experts.ravel()


def rows_of(values: np.ndarray) -> np.ndarray:
    """A node's values as (tokens, columns)."""
    return values.reshape(-1, values.shape[-1])


def node_values(node: GGMLTensor) -> np.ndarray:
    """A view of a computed float32 node, its axes reversed as in numpy; valid only within the callback."""
    return _array(node, llama_cpp.GGML_TYPE_F32, np.float32)


def _array(node: GGMLTensor, kind: int, dtype: type[np.generic]) -> np.ndarray:
    if node.type != kind or not node.data:
        raise NativeError(f"{node.name.decode()}: not {dtype.__name__} in memory; it cannot be observed")
    shape, strides = tuple(node.ne)[::-1], tuple(node.nb)[::-1]
    span = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 4
    return np.ndarray(shape, dtype, (ctypes.c_char * span).from_address(node.data), strides=strides)


def require_products(path: str, missing: Collection[str]) -> None:
    """Raise NativeError if there is a weight of which nothing was among the nodes of a decode."""
    if missing:
        raise NativeError(f"{path}: llama.cpp computes nothing with {min(missing)} that can be observed")
