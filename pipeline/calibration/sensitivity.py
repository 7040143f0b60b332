"""How many nats an error of a projection costs: measured layer by layer, the unit in which metric `attention` counts.

The KL divergence that a small error causes grows with the square of the error. One error of each projection, what its
weakest components under the metric make up, is added while llama.cpp runs, scaled to a set share of the projection's
energy under the metric; divergence over share is the projection's sensitivity. With it, errors of k and v, and of
different layers, are in one unit, and a predicted damage in nats a token.
"""

from collections.abc import Generator

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
NEGLIGIBLE = 1e-9  # a share that costs nothing but what rounding differently costs


def measure_sensitivities(
    model: GGUFModel, calibration: Calibration, text: Text, threads: int, progress: Progress
) -> dict[str, list[float]]:
    """For each role the nats that an error of all its energy would cost, by layer; 0 for layers without attention.

    `progress` counts projections. Raises NativeError when llama.cpp cannot run the model.
    """
    layers = AttentionLayers(model, calibration, calibration.roles)
    options = ContextOptions(n_ctx=PROBE_TOKENS, n_batch=PROBE_TOKENS, threads=threads)
    middle = calibration.origin.chunk_count * calibration.origin.chunk_size // PROBE_TOKENS // 2
    probes = isolated(probe_errors, str(model.path), text.content, middle, options)
    next(probes)
    roles = dict.fromkeys(role for projections in layers.projections.values() for role in projections)
    result = {role: [0.0] * (max(layers) + 1) for role in roles}
    rounding: dict[str, float] = {}
    done, total = 0, sum(map(len, layers.projections.values()))
    try:
        for number, layer in layers.items():
            for role, projection in layer.projections.items():
                error = weakest_error(layer, role)
                if role not in rounding:
                    rounding[role] = max(_cost(probes, model, projection, error, NEGLIGIBLE), SMALLEST)
                result[role][number] = _sensitivity(probes, model, projection, error, rounding[role])
                done += 1
                progress(done, total, "")
    finally:
        probes.close()
    return result


Probes = Generator[float, WeightError, None]


def _sensitivity(probes: Probes, model: GGUFModel, projection: Projection, error: np.ndarray, rounding: float) -> float:
    share = SHARES[projection.role]
    nats = _cost(probes, model, projection, error, share)
    if nats < 3 * rounding:
        share *= STRONGER
        nats = _cost(probes, model, projection, error, share)
    return max(nats - rounding, rounding / 20) / share


def _cost(probes: Probes, model: GGUFModel, projection: Projection, error: np.ndarray, share: float) -> float:
    """The nats that `error` costs when it is scaled to `share` of the projection's energy."""
    whole = np.zeros(model.tensors[projection.tensor].shape, np.float32)
    projection.put(whole, error * np.sqrt(share))
    return probes.send(WeightError(projection.tensor, whole))


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
