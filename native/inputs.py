"""The inputs of attention blocks, token by token, taken while llama.cpp decodes chosen chunks of a text."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np

from native.capture import node_values
from native.errors import NativeError
from native.library import GGMLTensor, op_number
from native.model import ContextOptions, load_model, open_context


class InputObserver:
    """Receives graph nodes and keeps what is multiplied with the wanted weights, float32 (tokens, columns) by layer."""

    def __init__(self, layers: Mapping[str, int]) -> None:
        self.inputs: dict[int, np.ndarray] = {}
        self.error: Exception | None = None
        self._layers = {name.encode(): layer for name, layer in layers.items()}
        self._product = op_number("MUL_MAT")
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._observe)

    def _observe(self, address: int, ask: bool, user_data: Any) -> bool:
        node = GGMLTensor.from_address(address)
        if node.op != self._product:
            return False
        layer = self._layers.get(GGMLTensor.from_address(node.src[0]).name)
        if layer is None:
            return False
        if not ask:
            try:
                values = node_values(GGMLTensor.from_address(node.src[1]))
                self.inputs[layer] = values.reshape(-1, values.shape[-1]).copy()
            except Exception as error:  # it must not cross C; it is raised after the decode
                self.error = error
                return False
        return True


def capture_inputs(
    path: str, text: str, layers: Mapping[str, int], chunks: Sequence[int], options: ContextOptions
) -> Generator[dict[int, np.ndarray], None, None]:
    """Yield, for each of the numbered chunks of n_ctx tokens of `text`, the inputs of each layer, (n_ctx, columns).

    `layers` maps the name of each layer's query weight to the layer's number. Raises NativeError when the model cannot
    be loaded or observed, or the text is too short.
    """
    n = options.n_ctx
    observer = InputObserver(layers)
    with load_model(path) as model, open_context(model, options, observer.callback) as context:
        tokens = model.tokenize(text, special=False)
        if len(tokens) < (max(chunks) + 1) * n:
            raise NativeError(f"the text has {len(tokens)} tokens; {(max(chunks) + 1) * n} are needed")
        for chunk in chunks:
            part = tokens[chunk * n : (chunk + 1) * n].copy()
            if model.adds_bos:
                part[0] = model.bos
            context.clear()
            context.decode(part, np.arange(n), np.zeros(n, int), np.ones(n, bool))
            if observer.error:
                raise observer.error
            if missing := set(layers.values()) - observer.inputs.keys():
                raise NativeError(
                    f"{path}: llama.cpp computes no attention in layer {min(missing)} that can be observed"
                )
            yield observer.inputs
