"""Conversion to latent attention as studies have it: a model of other tensors altogether."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.gguf_file.reader import GGUFModel, open_gguf, tensor_nbytes
from pipeline.latent.architecture import declare_tensors
from pipeline.latent.byte_budget import affordable_plans
from pipeline.latent.convert import LatentReport, convert_to_latent
from pipeline.latent.plan import METHODS, CacheLayout, LatentPlan, choose_layout, latent_plans
from pipeline.latent.source import require_convertible
from pipeline.observations.statistics_file import Calibration
from pipeline.protocol import CellFile, OperationKind
from pipeline.quantization import quantize


def check_latent(model: GGUFModel, plan: LatentPlan) -> CacheLayout:
    """How a plan divides the cache of `model`, or may divide it where calibration is to choose.

    Raises as `require_convertible`, `choose_layout` and `affordable_plans` do.
    """
    source = require_convertible(model)
    return choose_layout(plan if plan.cache_bytes is None else affordable_plans(plan, source)[0], source)


def _perform(
    model: GGUFModel, plans: Mapping[Path, LatentPlan], calibration: Calibration | None, threads: int
) -> list[LatentReport]:
    if calibration is None:
        raise UsageError("latent attention needs calibration statistics", argument="calibration")
    return [
        convert_to_latent(model, path, plan, calibration, threads=threads, force=True) for path, plan in plans.items()
    ]


def _cell_file(file: CellFile, output: Path) -> Path:
    """There is nothing to put into the source's quantisation: the model itself is quantised."""
    if file.quant is None:
        return file.performed
    quantize(open_gguf(file.performed), output, file.quant, threads=file.threads)
    return output


def _growth(model: GGUFModel, plan: LatentPlan) -> int:
    source = require_convertible(model)
    declared, _ = declare_tensors(model, source, choose_layout(plan, source), plan.outtype)
    new = sum(tensor_nbytes(tensor.shape, tensor.type) for tensor in declared)
    return new - sum(info.nbytes for info in model.tensors.values())


LATENT = OperationKind(
    plan=LatentPlan,
    command="latent",
    quantises=False,
    methods=tuple(METHODS),
    algorithm="latent",
    of_grid=latent_plans,
    check=check_latent,
    perform=_perform,
    cell_file=_cell_file,
    replaced=lambda converted: [],
    growth=_growth,
)
