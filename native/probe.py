"""How far a model's predictions move when a weight is off: measured, by adding an error to its products as it runs."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from native.errors import NativeError
from native.library import GGMLTensor
from native.model import ContextOptions, load_model, open_context
from native.observer import GraphObserver, node_values, product_inputs, routed_inputs
from native.scoring import score_tokens


@dataclass(frozen=True)
class WeightError:
    """An error of the weight called `tensor`: float32 of its shape, (rows, columns) or (matrices, rows, columns).

    Of a weight of `experts`, it has a matrix for each of these, and none for the others.
    """

    tensor: str
    error: np.ndarray
    experts: tuple[int, ...] = ()


class ErrorInjector(GraphObserver):
    """Adds x E^T to what the weight makes of activations x, as if it were W + E."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: WeightError | None = None
        self.seen = False

    def recognise(self, node: GGMLTensor) -> str | None:
        name = self.weight_of(node)
        return name if self.wanted and name == self.wanted.tensor else None

    def receive(self, name: str, node: GGMLTensor) -> None:
        assert self.wanted is not None  # else it would not have been recognised
        error = self.wanted.error.reshape(-1, *self.wanted.error.shape[-2:])
        values = node_values(node)
        if self.is_routed(node):
            inputs, chosen = routed_inputs(node)
            for expert, its_error in zip(self.wanted.experts, error, strict=True):
                mine = chosen == expert
                values[0][mine.reshape(values.shape[1:3])] += inputs[mine] @ its_error.T
        else:
            made = product_inputs(node) @ error.swapaxes(1, 2)
            values += made.reshape(values.shape)
        self.seen = True


def probe_errors(
    path: str, text: str, chunk: int, options: ContextOptions
) -> Generator[float | None, WeightError, None]:
    """A conversation: first yields None; send it an error, it yields the mean KL divergence that the error causes.

    In nats a token, over the `chunk`-th chunk of n_ctx tokens of `text`, from the model as it is. Raises NativeError
    when the model cannot be loaded, has no product with the weight, or computes NaN or infinity.
    """
    injector = ErrorInjector()
    with load_model(path) as model, open_context(model, options, injector.callback) as context:
        tokens = model.tokenize(text, special=False)[chunk * options.n_ctx :][: options.n_ctx]
        outputs = np.arange(len(tokens)) < len(tokens) - 1  # nothing comes after the last one
        injector.decode(context, tokens, outputs)
        right = context.logits(len(tokens) - 1).copy()
        wanted = yield None
        while True:
            injector.wanted, injector.seen = wanted, False
            injector.decode(context, tokens, outputs)
            if not injector.seen:
                raise NativeError(f"{path}: llama.cpp computes no product with {wanted.tensor} that could be observed")
            nats = float(score_tokens(context.logits(len(right)), tokens[1:], right).kld.mean())
            if not np.isfinite(nats):
                raise NativeError(
                    f"{path}: an error of {wanted.tensor} costs {nats} nats; the model is numerically broken"
                )
            wanted = yield nats
