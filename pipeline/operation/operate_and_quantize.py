"""Operate on a model, then put the whole file through llama.cpp's quantiser."""

from pathlib import Path
from typing import Any

from native.errors import NativeError
from pipeline.calibration.statistics_file import Calibration
from pipeline.errors import SurgeryError
from pipeline.files.output_file import check_output, followed
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.operation.operate import OperationReport, operate
from pipeline.operation.plan import Plan
from pipeline.progress import Progress, silent
from pipeline.quantization import quantize


def operate_and_quantize(
    model: GGUFModel,
    output: Path,
    plan: Plan,
    kind: str,
    *,
    calibration: Calibration | None = None,
    threads: int = 0,
    force: bool = False,
    operating: Progress = silent,
    quantizing: Progress = silent,
) -> tuple[OperationReport, dict[str, Any]]:
    """Write `output` as `operate` and then `quantize` would; the file in between is removed."""
    check_output(output, force=force, sources=model.paths)
    target = followed(output)
    between = target.with_name(f".{target.name}.operated")
    try:
        report = operate(model, between, plan, calibration=calibration, threads=threads, force=True, progress=operating)
        quantization = quantize(open_gguf(between), output, kind, threads=threads, force=force, progress=quantizing)
    except (SurgeryError, NativeError) as error:  # the user knows of no file in between
        raise type(error)(str(error).replace(str(between), str(output))) from error
    finally:
        between.unlink(missing_ok=True)
    report.output, report.output_bytes = str(output), quantization["output_bytes"]
    report.seconds += quantization["seconds"]
    return report, quantization
