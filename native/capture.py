"""Moments of activations, taken while llama.cpp decodes a text: what calibrated surgery and importance matrices need.

llama.cpp shows every node of its graph to a callback as it is computed. From the product with a layer's query weights
comes the normalised input `x` of its attention block, from the node `kq_soft_max` the attention probabilities `p`
(hence no flash attention). One chunk is decoded at a time, as one micro-batch, so that a layer's `x` and `p` belong
together and only those of one layer are held. Where q, k and v are made of latents, these are inputs as well.
"""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from native.errors import NativeError, require_tokens
from native.library import GGMLTensor, op_number
from native.model import ContextOptions, load_model, open_context
from native.observer import (
    GraphObserver,
    node_values,
    product_inputs,
    require_products,
    routed_inputs,
    rows_of,
)
from native.on_disk import Sums
from native.triangle import pack

CHUNKS_BETWEEN_PARTS = 8
MOST_IN_MEMORY = 1 << 28  # bytes of triangles; the others are in temporary files, written anew for each chunk
TOKENS_AFTER = 64  # that the covered text goes on for, so that it has no chunk less when it is tokenised again
PROBABILITIES = "kq_soft_max"
NOT_ROTATED = np.array([0, 0])
TRIANGLES = frozenset({"second_moment", "received"})


@dataclass(frozen=True)
class CaptureStart:
    """Known before the first decode: how many chunks there are in all, the text that they cover, and the kind of RoPE.

    `covered_text` goes on for up to TOKENS_AFTER tokens more.
    `rope` is `norm` (pairs of neighbours turn together), `neox` (pairs half a head apart) or `none`.
    """

    chunks: int
    n_ctx: int
    covered_text: str
    rope: str


@dataclass(frozen=True)
class Watched:
    """What of a layer is to be observed: the input of a product with a weight, its `result`, or that of a norm's weight.

    attended: whether it is summed with the attention that its tokens receive as well
    together, apart: of a product with experts, whether what all of them are given is summed as one input, each token
        once, and whether what each is given as one of its own, which has the expert's number after the `name`
    """

    layer: int
    name: str
    attended: bool = True
    result: bool = False
    together: bool = True
    apart: bool = False


@dataclass(frozen=True)
class CapturedPart:
    """Sums over the `chunks` that were decoded since the part before; arrays are float64.

    inputs: for each layer, by the input's name and then: `count` (1,) of tokens; `sum` (d,) and `second_moment`: sum x,
        sum x x^T over all tokens; `received`: sum x x^T with each token weighted by the attention that it receives,
        summed over the queries and averaged over the heads, so that the weights sum to the number of tokens. Matrices
        are packed, (d (d + 1) / 2,), see `native.triangle`.
        With it comes `rope` (2,): how many features of a head were rotated, and ggml's mode of doing so. Both are
        lacking for what is not `attended`, and where llama.cpp shows no attention probabilities.
    products: for each weight that is multiplied with activations, the sums of their squares, (matrices * columns,), and
        the numbers of activations: (1,), or (matrices,) where each is multiplied with a choice of them, as experts are
    """

    chunks: int
    inputs: dict[int, dict[str, dict[str, np.ndarray]]]
    products: dict[str, tuple[np.ndarray, np.ndarray]]


class ActivationSums(GraphObserver):
    """Adds up a CapturedPart. `watched` maps names of weights to the inputs that are to be summed there.

    Matrices are kept as triangles until they are taken, in float32, as products are: of a few chunks that is exact enough.
    """

    def __init__(self, watched: Mapping[str, Watched]) -> None:
        super().__init__()
        self.watched = watched
        self.chunks = 0
        self.inputs: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        self.products: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._sums = Sums(MOST_IN_MEMORY)
        self._scaling, self._turning = op_number("MUL"), op_number("ROPE")
        self._layer: int | None = None  # whose attention comes next: layers' weights may be used several times over
        self._new: dict[str, np.ndarray] = {}
        self._rotated = NOT_ROTATED
        self._seen: set[Watched] = set()

    def take(self) -> Iterator[CapturedPart]:
        """What was added up since the last call, an input at a time; only the last part counts the chunks."""
        while self.inputs:
            layer, inputs = self.inputs.popitem()
            while inputs:
                name, sums = inputs.popitem()
                yield CapturedPart(
                    0, {layer: {name: {what: values.astype(np.float64) for what, values in sums.items()}}}, {}
                )
        part = CapturedPart(self.chunks, {}, self.products)
        self.chunks, self.products, self._sums = 0, {}, Sums(MOST_IN_MEMORY)
        yield part

    def missing(self) -> set[str]:
        """The weights of which nothing that is wanted was among the nodes of a decode."""
        return {name for name, each in self.watched.items() if each not in self._seen}

    def recognise(self, node: GGMLTensor) -> str | None:
        """The weight's name for a product or a norm, `kq_soft_max` for attention probabilities."""
        if node.name.startswith(b"kq_soft_max-"):
            return PROBABILITIES
        if node.op == self._turning and self._layer is not None:
            self._rotated = np.array([node.op_params[1], node.op_params[2]])
        if node.op == self._scaling and node.src[1]:
            name: str = GGMLTensor.from_address(node.src[1]).name.decode(errors="replace")
            return name if name in self.watched else None
        return self.weight_of(node)

    def receive(self, name: str, node: GGMLTensor) -> None:
        if name == PROBABILITIES:
            self._add_attention(node_values(node))
        elif node.op == self._scaling:
            self._add_input(self.watched[name], rows_of(node_values(node)))
        elif self.is_routed(node):
            self._add_routed(name, node)
        else:
            values = product_inputs(node)
            self._add_product(name, np.einsum("mnd,mnd->md", values, values), np.array([values.shape[1]]))
            if watched := self.watched.get(name):
                self._add_input(watched, rows_of(node_values(node)) if watched.result else values[0])

    def _add_product(self, name: str, squares: np.ndarray, counts: np.ndarray) -> None:
        total, count = self.products.get(name, (np.zeros(squares.size), np.zeros(counts.shape, np.int64)))
        self.products[name] = total + squares.ravel(), count + counts

    def _add_routed(self, name: str, node: GGMLTensor) -> None:
        watched, matrices = self.watched.get(name), GGMLTensor.from_address(node.src[0]).ne[2]
        values, experts = routed_inputs(node)
        squares = np.zeros((matrices, values.shape[1]))
        for expert in np.unique(experts):
            mine = values[experts == expert]
            squares[expert] = np.einsum("nd,nd->d", mine, mine)
            if watched and watched.apart:
                self._add_input(replace(watched, name=f"{watched.name}{expert}"), mine)
        self._add_product(name, squares, np.bincount(experts, minlength=matrices))
        if watched and watched.together:
            self._add_input(watched, rows_of(node_values(GGMLTensor.from_address(node.src[1]))))
        elif watched:
            self._seen.add(watched)

    def _add_input(self, watched: Watched, values: np.ndarray) -> None:
        self._seen.add(watched)
        if watched.attended:
            if self._layer != watched.layer:
                self._layer, self._new, self._rotated = watched.layer, {}, NOT_ROTATED
            self._new[watched.name] = values.copy()
        self._add(watched, "count", np.array([len(values)]))
        self._add(watched, "sum", values.sum(axis=0, dtype=np.float64))
        self._add(watched, "second_moment", values.T @ values)

    def _add_attention(self, probabilities: np.ndarray) -> None:
        """`probabilities`: (1, heads, queries, cells of the cache)."""
        if self._layer is None:
            return
        for name, x in self._new.items():
            n = len(x)
            if len(probabilities) != 1 or probabilities.shape[2] != n or probabilities.shape[3] < n:
                shape = probabilities.shape
                raise NativeError(f"layer {self._layer}: attention of shape {shape} is not that of {n} new tokens")
            weighted = x * np.sqrt(probabilities[0, :, :, :n].sum(axis=1).mean(axis=0))[:, None]
            self._add(Watched(self._layer, name), "received", weighted.T @ weighted)
            self.inputs[self._layer][name]["rope"] = self._rotated
        self._layer, self._new = None, {}

    def _add(self, watched: Watched, what: str, values: np.ndarray) -> None:
        sums = self.inputs.setdefault(watched.layer, {}).setdefault(watched.name, {})
        if what not in TRIANGLES:
            sums[what] = values + sums.get(what, 0.0)
        elif what in sums:
            self._sums.add(sums[what], pack(values))
        else:
            sums[what] = self._sums.begin(pack(values))


def capture_moments(
    path: str, text: str, watched: Mapping[str, Watched], *, chunks: int | None, skip: int, options: ContextOptions
) -> Generator[CaptureStart | int | CapturedPart, None, None]:
    """Decode `text` in chunks of n_ctx tokens, without the first `skip`.

    Yields a CaptureStart, then after each chunk the number of chunks done in all, and every few chunks a CapturedPart
    to be added to those before. `watched` maps names of weights to the inputs that are to be observed there. Raises
    NativeError when the model cannot be loaded or observed or computes NaN or infinity, or the text is too short.
    """
    n_ctx = options.n_ctx
    sums = ActivationSums(watched)
    with load_model(path) as model, open_context(model, options, sums.callback) as context:
        tokens = model.tokenize(text, special=False)
        require_tokens(len(tokens), n_ctx, "one chunk: use a longer text")
        count = min(chunks or len(tokens) // n_ctx, len(tokens) // n_ctx)
        grid = tokens[: count * n_ctx].reshape(count, n_ctx)
        covered = b"".join(model.piece(token) for token in tokens[: grid.size + TOKENS_AFTER].tolist())
        yield CaptureStart(count, n_ctx, covered.decode("utf-8", errors="replace"), model.rope)
        for done in range(skip, count):
            sums.decode(context, grid[done])
            sums.chunks += 1
            yield done + 1
            require_products(path, sums.missing())
            if sums.chunks == CHUNKS_BETWEEN_PARTS or done + 1 == count:
                for part in sums.take():
                    require_finite(path, part)
                    yield part


def require_finite(path: str, part: CapturedPart) -> None:
    """Raise NativeError for NaN or infinity among the sums: a broken model has no statistics."""
    sums = {
        f"the attention of layer {layer}": [values for arrays in inputs.values() for values in arrays.values()]
        for layer, inputs in part.inputs.items()
    }
    sums |= {f"the inputs of {name}": [squares] for name, (squares, _) in part.products.items()}
    for what, arrays in sums.items():
        if not all(np.isfinite(values).all() for values in arrays):
            raise NativeError(f"{path}: NaN or infinity in {what}; the model is numerically broken")
