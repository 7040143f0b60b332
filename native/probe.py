"""How far a model's predictions move when a weight is off: measured, by adding an error to its products as it runs."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from native.capture import node_values
from native.errors import NativeError
from native.library import GGMLTensor, op_number
from native.model import Context, ContextOptions, load_model, open_context
from native.scoring import score_tokens


@dataclass(frozen=True)
class WeightError:
    """An error of rows `start` to `start + n` of the weight called `tensor`: float32 of shape (n, columns)."""

    tensor: str
    start: int
    error: np.ndarray


class ErrorInjector:
    """Adds x E^T to what the weight makes of activations x, as if it were W + E."""

    def __init__(self) -> None:
        self.wanted: WeightError | None = None
        self.seen = False
        self.exception: Exception | None = None
        self._product = op_number("MUL_MAT")
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._observe)

    def _observe(self, address: int, ask: bool, user_data: Any) -> bool:
        node = GGMLTensor.from_address(address)
        if self.wanted is None or node.op != self._product:
            return False
        if GGMLTensor.from_address(node.src[0]).name != self.wanted.tensor.encode():
            return False
        if not ask:
            try:
                self._add(self.wanted, node)
            except Exception as error:  # it must not cross C; it is raised after the decode
                self.exception = error
                return False
        return True

    def _add(self, wanted: WeightError, node: GGMLTensor) -> None:
        inputs = node_values(GGMLTensor.from_address(node.src[1])).reshape(-1, wanted.error.shape[1])
        outputs = node_values(node)[0, 0]
        outputs[:, wanted.start : wanted.start + len(wanted.error)] += inputs @ wanted.error.T
        self.seen = True


def probe_errors(
    path: str, text: str, chunk: int, options: ContextOptions
) -> Generator[float | None, WeightError, None]:
    """A conversation: first yields None; send it an error, it yields the mean KL divergence that the error causes.

    In nats a token, over the `chunk`-th chunk of n_ctx tokens of `text`, from the model as it is. Raises NativeError
    when the model cannot be loaded or has no product with the weight.
    """
    injector = ErrorInjector()
    with load_model(path) as model, open_context(model, options, injector.callback) as context:
        tokens = model.tokenize(text, special=False)[chunk * options.n_ctx :][: options.n_ctx]
        right = _logits(context, tokens).copy()
        wanted = yield None
        while True:
            injector.wanted, injector.seen = wanted, False
            changed = _logits(context, tokens)
            if injector.exception:
                raise injector.exception
            if not injector.seen:
                raise NativeError(f"{path}: llama.cpp computes no product with {wanted.tensor} that could be observed")
            wanted = yield float(score_tokens(changed, tokens[1:], right).kld.mean())


def _logits(context: Context, tokens: np.ndarray) -> np.ndarray:
    """The logits of all tokens but the last of one chunk."""
    n = len(tokens)
    if context.model.adds_bos:
        tokens = np.append(np.int32(context.model.bos), tokens[1:])
    context.clear()
    context.decode(tokens, np.arange(n), np.zeros(n, int), np.arange(n) < n - 1)
    return context.logits(n - 1)
