"""What makes models: the library's functions, which open what is named and calibrate where that is needed."""

from collections.abc import Collection
from pathlib import Path

from pipeline.calibration.calibrate import DEFAULT_CHUNKS
from pipeline.calibration.obtain import CalibrationWatch, obtain_calibration, split_names
from pipeline.files.output_file import check_output
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.models import open_source
from pipeline.inputs.texts import AUTO_TEXT
from pipeline.latent import convert
from pipeline.latent.kind import check_latent
from pipeline.latent.plan import LatentPlan
from pipeline.observations.statistics_file import Calibration
from pipeline.operation import operate as low_rank
from pipeline.operation.layer_groups import check_plan
from pipeline.operation.operate_and_quantize import operate_and_quantize
from pipeline.operation.plan import Plan, check_method
from pipeline.operation.report import OperationReport
from pipeline.progress import Progress, silent
from pipeline.quantization import Quantization, known_type, require_weighing
from pipeline.quantization import quantize as quantize_file
from pipeline.targets import QKV, target_roles

Named = str | Path | GGUFModel
"""A model, or what `open_model` knows it by."""
Statistics = Calibration | str | Path
"""Calibration statistics, or the names that `calibrate` takes."""


def open_model(name: Named) -> GGUFModel:
    """A GGUF file, `smollm2-135m`, a file of the hub, or a Hugging Face checkpoint, as a model whose tensors can be read.

    Raises UsageError for what is none of them, SurgeryError for a damaged file.
    """
    return name if isinstance(name, GGUFModel) else open_source(str(name))


def calibrate(
    model: Named,
    texts: str | Path = AUTO_TEXT,
    *,
    chunks: int = DEFAULT_CHUNKS,
    metric: str = "attention",
    targets: str = "qkv",
    threads: int = 0,
    progress: Progress = silent,
) -> Calibration:
    """What a model sees of `texts`: files, with commas between, or `self`, which the model writes.

    From the cache, or taken now over up to `chunks` chunks of 512 tokens of each. `metric` inputs is taken faster,
    without the probes that `attention` needs. With `targets` beyond q, k and v, such as `all`, all is observed that a
    plan may have as its targets. `progress` counts chunks.
    """
    return obtain_calibration(
        open_model(model), str(texts), chunks=chunks, metric=metric, roles=target_roles(targets), threads=threads,
        watch=CalibrationWatch(capturing=progress), argument="texts",
    )  # fmt: skip


def operate(
    model: Named,
    output: str | Path,
    plan: Plan = Plan(),
    *,
    calibration: Statistics = AUTO_TEXT,
    quant: str | None = None,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> OperationReport:
    """Write `output`: `model` with the targets replaced that `plan` names, then quantised whole to `quant`, if given.

    `calibration` is used by a plan whose metric is not `weights`. `progress` counts groups. Raises UsageError for a plan
    that the model cannot follow or an output that exists, unless by `force`.
    """
    source, path = open_model(model), Path(output)
    if quant:
        known_type(quant)
    check_output(path, force=force, sources=_inputs(source, calibration))
    check_method(plan, chosen=plan.method != Plan.method)
    check_plan(source, plan)
    moments = None if plan.metric == "weights" else statistics(source, calibration, plan.metric, threads, plan.roles)
    if quant:
        return operate_and_quantize(
            source, path, plan, quant, calibration=moments, threads=threads, force=force, operating=progress
        )[0]
    return low_rank.operate(source, path, plan, calibration=moments, threads=threads, force=force, progress=progress)


def convert_to_latent(
    model: Named,
    output: str | Path,
    plan: LatentPlan = LatentPlan(),
    *,
    calibration: Statistics = AUTO_TEXT,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> convert.LatentReport:
    """Write `output`: `model`, a Llama, with keys and values cached as one small latent. `progress` counts layers.

    Raises SurgeryError for a model that cannot be converted, UsageError for a plan that it cannot follow.
    """
    source, path = open_model(model), Path(output)
    check_latent(source, plan)
    check_output(path, force=force, sources=_inputs(source, calibration))
    moments = statistics(source, calibration, plan.metric, threads, plan.roles)
    return convert.convert_to_latent(source, path, plan, moments, threads=threads, force=force, progress=progress)


def quantize(
    model: Named,
    output: str | Path,
    kind: str,
    *,
    importance_matrix: str | Path | None = None,
    threads: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Quantization:
    """Write `output`: `model` in a type of llama.cpp's quantiser such as Q4_K_M; `progress` counts tensors.

    Raises UsageError for an unknown type, and for an importance matrix that changes nothing in it.
    """
    matrix = None if importance_matrix is None else Path(importance_matrix)
    source = open_model(model)
    if matrix:
        require_weighing(kind)
        check_output(Path(output), force=force, sources=[path for path in (*source.paths, matrix) if path.exists()])
    return quantize_file(
        source, Path(output), kind,
        importance_matrix=matrix, threads=threads, force=force, progress=progress,
    )  # fmt: skip


def _inputs(model: GGUFModel, calibration: Statistics) -> list[Path]:
    """The files that an operation reads, none of which may be its output."""
    if isinstance(calibration, Calibration):
        return [*model.paths, calibration.path]
    named = [Path(name).expanduser() for name in split_names(str(calibration), "calibration")]
    return [*model.paths, *(path for path in named if path.exists())]


def statistics(
    model: GGUFModel, given: Statistics, metric: str, threads: int, roles: Collection[str] = QKV
) -> Calibration:
    """Statistics that are given, or those by that name."""
    if isinstance(given, Calibration):
        return given
    return obtain_calibration(model, str(given), metric=metric, roles=roles, threads=threads)
