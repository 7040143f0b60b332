"""A layer as one object: its projections and what is known of their inputs, read when asked for, once."""

import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from pipeline.attention import Projection, find_projections, of_layer, read_projection
from pipeline.decompose.attention_metric import times
from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.observations.experts import moments_of, share_of_tokens
from pipeline.observations.moments import LayerMoments
from pipeline.observations.statistics_file import Calibration
from pipeline.projection import OWN, Block
from pipeline.targets import QKV

LARGEST_ENERGY = 1e36  # sum of a projection's squares, with room to add up some hundred in float32

Made = TypeVar("Made")


class Layer:
    """One layer: `projections` by role. Whatever is read stays as long as the object does, and threads may share it.

    Or one of the feed-forward blocks that it has beside its own, such as an expert, with the projections of that.
    Without a `calibration` it has weights alone. Arrays are not to be written to.
    """

    def __init__(
        self, model: GGUFModel, number: int, projections: Mapping[str, Projection], calibration: Calibration | None
    ) -> None:
        self.model, self.number, self.projections, self._calibration = model, number, projections, calibration
        self._made: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def once(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, called by the first who asks for `name`; whoever else asks meanwhile waits for it."""
        with self._lock:
            first = name not in self._made
            future = self._made.setdefault(name, Future())
        if first:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        result: Made = future.result()
        return result

    @property
    def calibration(self) -> Calibration:
        """The statistics. There must be some: whoever takes a plan sees to it."""
        assert self._calibration is not None
        return self._calibration

    def rows(self, role: str) -> np.ndarray:
        """A projection's weights, float32 (n, d). Raises SurgeryError where sums of their squares overflow."""
        return self.once(("rows", role), lambda: _finite_rows(self.model, self.projections[role]))

    def stacked(self, roles: Sequence[str]) -> np.ndarray:
        """The rows of several projections, float32 (n, d); of one as `rows` has them."""
        return self.rows(roles[0]) if len(roles) == 1 else np.vstack([self.rows(role) for role in roles])

    def bias(self, role: str) -> np.ndarray | None:
        """A projection's bias, float32 (n,), or None."""
        return self.once(("bias", role), lambda: _bias(self.model, self.projections[role]))

    def norm(self, role: str) -> np.ndarray | None:
        """The weights that q or k are multiplied with once they are normalised: (b,) or (n,), or (heads, b), or None."""
        name = f"blk.{self.number}.attn_{role}_norm.weight"
        return self.once(("norm", role), lambda: self.model.read(name)) if name in self.model.tensors else None

    def output(self) -> np.ndarray | None:
        """The output projection, float32 (d, heads * b), or None where there is none by that name."""
        if "o" in self.projections:
            return self.rows("o")
        name = f"blk.{self.number}.attn_output.weight"
        return self.once("output", lambda: self.model.read(name)) if name in self.model.tensors else None

    @property
    def heads(self) -> int:
        """How many query heads there are."""
        return of_layer(self.model.hyperparameter("attention.head_count", 1), self.number)

    @property
    def kv_heads(self) -> int:
        """How many key/value heads there are."""
        return of_layer(self.model.hyperparameter("attention.head_count_kv", self.heads), self.number)

    def moments(self, role: str) -> LayerMoments:
        """Moments of the inputs of a projection. Raises SurgeryError for a layer that was not observed."""
        projection = self.projections[role]
        return self.once(("moments", projection.input), lambda: moments_of(self.calibration, projection))

    def result_energies(self, role: str) -> np.ndarray:
        """E[y^2] of each feature y that a projection makes of its inputs, its bias left out, (n,), float64."""

        def make() -> np.ndarray:
            inputs = self.moments(role).inputs
            if self.projections[role].by_result:
                return np.diag(inputs)
            rows = self.rows(role).astype(np.float64)
            return np.einsum("nd,nd->n", times(rows, inputs), rows)

        return self.once(("result energies", role), make)

    def sensitivity(self, role: str) -> float:
        """The nats a token that an error of a projection's whole energy would cost; 1 if it was not measured.

        Of an expert its share, by the tokens that are routed to it, of what errors of all experts of the layer would cost.
        """
        projection = self.projections[role]
        nats = self.calibration.sensitivity(projection.kind, self.number)
        return nats if projection.block.expert is None else nats * share_of_tokens(self.calibration, projection)


class AttentionLayers(Mapping[int, Layer]):
    """The layers of a model that have attention, or any of the projections `roles`, by number.

    `skipped` lists those of which something is left alone, each with the reason, `beside` the feed-forward blocks that
    they have beside their own, see `find_projections`.
    A layer is the same for all who hold it at one time, and read anew once nobody does.
    """

    def __init__(self, model: GGUFModel, calibration: Calibration | None = None, roles: Collection[str] = QKV) -> None:
        """Raises as `find_projections` does."""
        attention = find_projections(model, roles)
        self.model, self.calibration, self.targets = model, calibration, frozenset(roles)
        self.projections, self.skipped, self.beside = attention.layers, attention.skipped, attention.beside
        self._held: WeakValueDictionary[tuple[int, Block], Layer] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Layer:
        return self.block(number, OWN)

    def block(self, number: int, block: Block) -> Layer:
        """A layer, or a feed-forward block beside its own, with the projections of that alone."""
        with self._lock:
            layer = self._held.get((number, block))
            if layer is None:
                projections = self.projections[number] if block == OWN else self.beside[number][block]
                layer = self._held[number, block] = Layer(self.model, number, projections, self.calibration)
            return layer

    def blocks_beside(self, numbers: Iterable[int]) -> Iterator[Mapping[str, Projection]]:
        """The projections of each feed-forward block that layers have beside their own."""
        return chain.from_iterable(self.beside.get(number, {}).values() for number in numbers)

    @property
    def unprobed(self) -> list[str]:
        """The kinds of projections that are targets and whose sensitivities the statistics lack."""
        probed = self.calibration.probed if self.calibration else ()
        blocks = chain(self.projections.values(), self.blocks_beside(self))
        projections = chain.from_iterable(block.values() for block in blocks)
        kinds = dict.fromkeys(each.kind for each in projections if each.is_target(self.targets))
        return [kind for kind in kinds if kind not in probed]

    def require_sensitivities(self) -> None:
        """Raise UsageError unless the statistics say what errors of all these projections cost."""
        assert self.calibration is not None  # whoever takes a plan sees to it
        if self.unprobed:
            raise UsageError.of(
                "calibration", self.calibration.path,
                f"does not say what errors of {', '.join(self.unprobed)} cost; make it with surgery calibrate",
            )  # fmt: skip

    def __iter__(self) -> Iterator[int]:
        return iter(self.projections)

    def __len__(self) -> int:
        return len(self.projections)


def _finite_rows(model: GGUFModel, projection: Projection) -> np.ndarray:
    values = read_projection(model, projection)
    if not np.vdot(values, values) < LARGEST_ENERGY:
        raise SurgeryError(
            f"{model.tensors[projection.tensor].path}: tensor {projection.tensor} holds numbers up to"
            f" {np.abs(values).max():.3g}, whose squares overflow; the file is damaged, get it anew"
        )
    return values


def _bias(model: GGUFModel, projection: Projection) -> np.ndarray | None:
    name = projection.tensor.removesuffix("weight") + "bias"
    if name in model.tensors:
        whole = model.read(name)
        return (whole if projection.block.expert is None else whole[projection.block.expert])[projection.selected]
    apart = f"blk.{projection.layer}.attn_{projection.role}.bias"  # which may stand beside fused weights
    return model.read(apart) if apart in model.tensors else None
