"""The inputs of attention blocks, token by token, taken while llama.cpp decodes chosen chunks of a text."""

from collections.abc import Generator, Mapping, Sequence

import numpy as np

from native.errors import require_tokens
from native.library import GGMLTensor
from native.model import ContextOptions, load_model, open_context
from native.observer import GraphObserver, product_inputs, require_products


class InputObserver(GraphObserver):
    """Keeps what is multiplied with the wanted weights, float32 (tokens, columns) by layer."""

    def __init__(self, layers: Mapping[str, int]) -> None:
        super().__init__()
        self.layers = layers
        self.inputs: dict[int, np.ndarray] = {}

    def recognise(self, node: GGMLTensor) -> int | None:
        return self.layers.get(self.weight_of(node) or "")

    def receive(self, name: int, node: GGMLTensor) -> None:
        self.inputs[name] = product_inputs(node)[0].copy()


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
        require_tokens(len(tokens), (max(chunks) + 1) * n, "as many as were calibrated on: calibrate anew")
        for chunk in chunks:
            observer.decode(context, tokens[chunk * n : (chunk + 1) * n])
            require_products(path, {name for name, layer in layers.items() if layer not in observer.inputs})
            yield observer.inputs
