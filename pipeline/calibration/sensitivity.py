"""How many nats an error of a projection costs: measured layer by layer, the unit in which metric `attention` counts.

The KL divergence that a small error causes grows with the square of the error. One error of each projection, what its
weakest components under the metric make up, is added while llama.cpp runs, scaled to a set share of the projection's
energy under the metric; divergence over share is the projection's sensitivity. With it, errors of k and v, and of
different layers, are in one unit, and a predicted damage in nats a token.
"""

from collections.abc import Generator
from itertools import chain

import numpy as np

from native.isolated import isolated
from native.model import ContextOptions
from native.probe import WeightError, probe_errors
from pipeline.attention import Projection
from pipeline.calibration.metrics import attention_metric
from pipeline.decompose.principal_components import principal_components
from pipeline.decompose.weighted import weigh_rows
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import Text
from pipeline.layers import AttentionLayers, Layer
from pipeline.observations.experts import share_of_tokens
from pipeline.observations.statistics_file import Calibration
from pipeline.progress import Progress

SHARES = {
    "q": 0.01, "q_a": 0.01, "q_b": 0.01, "k": 0.01, "k_b": 0.01, "kv_a": 0.05, "v": 0.15, "v_b": 0.15,
    "o": 0.1, "gate": 0.1, "up": 0.1, "down": 0.1,
}  # fmt: skip
"""The probe's error as a share of the energy: such that it costs some hundredths of a nat."""
PROBE_TOKENS = 256
STRONGER = 8.0  # times the share, where the probe drowns in rounding
SMALLEST = 1e-9  # nats: what rounding costs at least, as it may come out negative
PROBED_EXPERTS = 4
NEGLIGIBLE = 1e-9  # a share that costs nothing but what rounding differently costs


def measure_sensitivities(
    model: GGUFModel, calibration: Calibration, text: Text, threads: int, progress: Progress
) -> dict[str, list[float]]:
    """For each kind the nats that an error of all its energy would cost, by layer; 0 for layers that do not have it.

    Of a layer's experts PROBED_EXPERTS, to which the most tokens are routed, are probed together, and the cost is that of
    all: it is taken to grow with the tokens that are routed to what has the error. `progress` counts probes. Raises
    NativeError when llama.cpp cannot run the model.
    """
    layers = AttentionLayers(model, calibration, calibration.roles)
    options = ContextOptions(n_ctx=PROBE_TOKENS, n_batch=PROBE_TOKENS, threads=threads)
    middle = calibration.origin.chunk_count * calibration.origin.chunk_size // PROBE_TOKENS // 2
    probes = isolated(probe_errors, str(model.path), text.content, middle, options)
    next(probes)
    subjects = _subjects(layers)
    result = {projections[0].kind: [0.0] * (max(layers) + 1) for projections in subjects}
    rounding: dict[str, float] = {}
    try:
        for done, projections in enumerate(subjects):
            first, *others = projections
            kind, number = first.kind, first.layer
            layer = layers.block(number, first.block)  # held until the next subject has it, too
            errors = [weakest_error(layer, first.role)]
            errors += [weakest_error(layers.block(number, each.block), each.role) for each in others]
            if kind not in rounding:
                rounding[kind] = max(_cost(probes, model, projections, errors, NEGLIGIBLE), SMALLEST)
            nats = _sensitivity(probes, model, projections, errors, rounding[kind])
            result[kind][number] = nats / _share_of_tokens(calibration, projections)
            progress(done + 1, len(subjects), "")
    finally:
        probes.close()
    return result


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


Probes = Generator[float, WeightError, None]


def _sensitivity(
    probes: Probes, model: GGUFModel, projections: list[Projection], errors: list[np.ndarray], rounding: float
) -> float:
    share = SHARES[projections[0].role]
    nats = _cost(probes, model, projections, errors, share)
    if nats < 3 * rounding:
        share *= STRONGER
        nats = _cost(probes, model, projections, errors, share)
    return max(nats - rounding, rounding / 20) / share


def _cost(
    probes: Probes, model: GGUFModel, projections: list[Projection], errors: list[np.ndarray], share: float
) -> float:
    """The nats that `errors` of `projections` of one tensor cost when each is scaled to `share` of the one's energy."""
    tensor = projections[0].tensor
    experts = tuple(projection.block.expert for projection in projections if projection.block.expert is not None)
    shape = model.tensors[tensor].shape
    whole = np.zeros((len(experts), *shape[1:]) if experts else shape, np.float32)
    for place, projection, error in zip(whole if experts else [whole], projections, errors, strict=True):
        projection.put(place, error * np.sqrt(share))
    return probes.send(WeightError(tensor, whole, experts))


def weakest_error(layer: Layer, role: str) -> np.ndarray:
    """What all but the stronger quarter of a projection's components make up, scaled to the projection's energy."""
    rows = layer.rows(role)
    weighted = weigh_rows(rows, attention_metric(layer, role), "none")
    components = principal_components(weighted.rows, "none")
    if not components.total:  # a projection of zeros, of which nothing can be left out
        return np.zeros_like(rows)
    rank = components.full_rank // 4
    left_out = max(components.total - components.energies[:rank].sum(), np.finfo(float).tiny)
    return (weighted.restore(components.reconstruct(rank)) - rows) / np.sqrt(left_out / components.total)
