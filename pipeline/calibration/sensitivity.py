"""How many nats an error of a projection costs: measured layer by layer, the unit in which metric `attention` counts.

The KL divergence that a small error causes grows with the square of the error. One error of each projection, what its
weakest components under the metric make up, is added while llama.cpp runs, scaled to a set share of the projection's
energy under the metric; divergence over share is the projection's sensitivity. With it, errors of k and v, and of
different layers, are in one unit, and a predicted damage in nats a token.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np

from native.isolated import isolated
from native.model import ContextOptions
from native.probe import WeightError, probe_errors
from pipeline.attention import Projection
from pipeline.calibration.metrics import attention_metric
from pipeline.decompose.principal_components import principal_components
from pipeline.decompose.weighted import weigh_rows
from pipeline.files.journal import add_record, read_journal
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import Text
from pipeline.layers import AttentionLayers, Layer
from pipeline.observations.experts import share_of_tokens
from pipeline.observations.statistics_file import Calibration
from pipeline.progress import Progress, silent

SHARES = {
    "q": 0.01, "q_a": 0.01, "q_b": 0.01, "k": 0.01, "k_b": 0.01, "kv_a": 0.05, "v": 0.15, "v_b": 0.15,
    "o": 0.1, "gate": 0.1, "up": 0.1, "down": 0.1,
}  # fmt: skip
"""The probe's error as a share of the energy: such that it costs some hundredths of a nat."""
STEADINESS = 0.5
"""How far what errors cost is drawn to their mean over layers, as logarithms: much is the text's, see docs/log.md."""
STRONGER = 8.0  # times the share, where the probe drowns in rounding
MOST = 0.1  # nats that such a probe may cost
SMALLEST = 1e-9  # nats: what rounding costs at least, as it may come out negative
PROBED_EXPERTS = 4
NEGLIGIBLE = 1e-9  # a share that costs nothing but what rounding differently costs


@dataclass(frozen=True)
class Probe:
    """What an error of a `share` of the energy of a layer's projection, or experts, of a kind cost: nats a token."""

    kind: str
    layer: int
    share: float
    nats: float


def measure_sensitivities(
    model: GGUFModel,
    calibration: Calibration,
    text: Text,
    kinds: Collection[str],
    journal: Path,
    *,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[str, list[float]]:
    """For each of the `kinds` of projections the nats that an error of all its energy would cost, by layer.

    0 for layers that do not have it. Of a layer's experts PROBED_EXPERTS, to which the most tokens are routed, are
    probed together, and the cost is that of all: it is taken to grow with the tokens that are routed to what has the
    error. Each probe is kept in `journal`, and those that are there are not made again; `progress` counts probes.
    Raises NativeError when llama.cpp cannot run the model.
    """
    layers = AttentionLayers(model, calibration, calibration.roles)
    chunks, n_ctx = calibration.origin.chunk_count, calibration.origin.chunk_size
    options = ContextOptions(n_ctx=n_ctx, n_batch=n_ctx, threads=threads)
    where = (text.content, chunks // 2) if text.coherent is None else (text.coherent, 0)
    probes = _Probes(isolated(probe_errors, str(model.path), *where, options), layers, journal)
    subjects = [projections for projections in _subjects(layers) if projections[0].kind in kinds]
    result = {kind: [0.0] * (max(layers) + 1) for kind in kinds}
    with closing(probes):
        for done, projections in enumerate(subjects):
            progress(done, len(subjects), "going on" if probes.kept and not done else "")
            nats = probes.sensitivity(projections)
            result[projections[0].kind][projections[0].layer] = nats / _share_of_tokens(calibration, projections)
        progress(len(subjects), len(subjects), "")
    return {kind: steadied(nats) for kind, nats in result.items()}


def steadied(nats: Sequence[float]) -> list[float]:
    """What errors of one kind cost by layer, drawn to their geometric mean by STEADINESS; 0 stays 0."""
    measured = [cost for cost in nats if cost]
    mean = float(np.exp(np.mean(np.log(measured)))) if measured else 0.0
    return [mean**STEADINESS * cost ** (1 - STEADINESS) if cost else 0.0 for cost in nats]


class _Probes:
    """Probes of a model's projections, layer after layer: those in a journal, or made now by talking to llama.cpp."""

    def __init__(self, costs: Generator[float, WeightError, None], layers: AttentionLayers, journal: Path) -> None:
        self._costs, self._layers, self._journal = costs, layers, journal
        probes = [Probe(**record) for record in read_journal(journal)]
        self.kept = {(probe.kind, probe.layer, probe.share): probe.nats for probe in probes}
        self._share: dict[str, float] = {}  # of the last probe of each kind
        self._rounding: dict[str, float] = {}
        self._layer: Layer | None = None  # of the last probe, held: the next one is often of the same
        self._begun = False

    def close(self) -> None:
        self._costs.close()

    def sensitivity(self, projections: list[Projection]) -> float:
        """The nats that an error of all the energy of a projection, or of experts of a layer, would cost.

        A share that drowned in rounding is multiplied by STRONGER, in the layers that follow, too, as long as that
        costs no more than MOST: damage grows with the share while it is small.
        """
        kind, least = projections[0].kind, SHARES[projections[0].role]
        cost = partial(self._cost, projections, cache(lambda: self._errors(projections)))
        if kind not in self._rounding:
            self._rounding[kind] = max(cost(NEGLIGIBLE), SMALLEST)
        rounding, share = self._rounding[kind], self._share.get(kind, least)
        nats = cost(share)
        if share == least and nats < 3 * rounding:
            share *= STRONGER
            nats = cost(share)
        elif share > least and nats > MOST:
            share = least
            nats = cost(share)
        self._share[kind] = share
        return max(nats - rounding, rounding / 20) / share

    def _cost(self, projections: list[Projection], errors: Callable[[], list[np.ndarray]], share: float) -> float:
        """The nats that errors of projections of one tensor cost when each is scaled to `share` of the one's energy."""
        first = projections[0]
        if (known := self.kept.get((first.kind, first.layer, share))) is not None:
            return known
        if not self._begun:
            next(self._costs)
            self._begun = True
        nats = self._costs.send(_weight_error(self._layers.model, projections, errors(), share))
        add_record(self._journal, asdict(Probe(first.kind, first.layer, share, nats)))
        return nats

    def _errors(self, projections: list[Projection]) -> list[np.ndarray]:
        first, *others = projections
        self._layer = self._layers.block(first.layer, first.block)
        errors = [weakest_error(self._layer, first.role)]
        return errors + [weakest_error(self._layers.block(each.layer, each.block), each.role) for each in others]


def _subjects(layers: AttentionLayers) -> list[list[Projection]]:
    """What each probe is of, layer by layer: a projection, or one of a layer's experts, those with the most tokens."""
    subjects = []
    for number, projections in layers.projections.items():
        subjects += [[projection] for projection in projections.values()]
        kinds: dict[str, list[Projection]] = {}
        for projection in chain.from_iterable(block.values() for block in layers.blocks_beside([number])):
            kinds.setdefault(projection.kind, []).append(projection)
        subjects += [_most_routed(layers, experts) for experts in kinds.values()]
    return subjects


def _most_routed(layers: AttentionLayers, experts: list[Projection]) -> list[Projection]:
    if experts[0].block.expert is None:
        return experts
    assert layers.calibration is not None
    counts = layers.calibration.routed(experts[0].tensor)
    return sorted(experts, key=lambda projection: -counts[projection.block.expert or 0])[:PROBED_EXPERTS]


def _share_of_tokens(calibration: Calibration, projections: list[Projection]) -> float:
    """The share of experts among all of a layer's; 1 for what all tokens go through."""
    if projections[0].block.expert is None:
        return 1.0
    return sum(share_of_tokens(calibration, projection) for projection in projections)


def _weight_error(
    model: GGUFModel, projections: list[Projection], errors: list[np.ndarray], share: float
) -> WeightError:
    """The `errors` of projections of one tensor, each scaled to `share` of the projection's energy."""
    tensor = projections[0].tensor
    experts = tuple(projection.block.expert for projection in projections if projection.block.expert is not None)
    shape = model.tensors[tensor].shape
    whole = np.zeros((len(experts), *shape[1:]) if experts else shape, np.float32)
    for place, projection, error in zip(whole if experts else [whole], projections, errors, strict=True):
        projection.put(place, error * np.sqrt(share))
    return WeightError(tensor, whole, experts)


def weakest_error(layer: Layer, role: str) -> np.ndarray:
    """What all but the stronger quarter of a projection's components make up, scaled to the projection's energy."""
    rows = layer.rows(role)
    weighted = weigh_rows(rows, attention_metric(layer, role), "none")
    components = principal_components(weighted.rows, "none")
    if not components.total:  # a projection of zeros, of which nothing can be left out
        return np.zeros_like(rows)
    rank = components.full_rank // 4
    left_out = max(components.total - components.energies[:rank].sum(), np.finfo(float).tiny)
    return (weighted.restore(*components.factors(rank)) - rows) / np.sqrt(left_out / components.total)
