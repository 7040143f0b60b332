"""Operate on a model, then put the whole file through llama.cpp's quantiser."""

from dataclasses import replace
from pathlib import Path

from pipeline.files.output_file import check_output, folder_beside
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.observations.statistics_file import Calibration
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from pipeline.operation.report import OperationReport
from pipeline.progress import Progress, silent
from pipeline.quantization import Quantization, quantize


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
) -> tuple[OperationReport, Quantization]:
    """Write `output` as `operate` and then `quantize` would; the file in between is removed."""
    check_output(output, force=force, sources=model.paths)
    with folder_beside(output) as folder:
        between = folder / output.name
        report = operate(model, between, plan, calibration=calibration, threads=threads, progress=operating)
        quantization = quantize(open_gguf(between), output, kind, threads=threads, force=force, progress=quantizing)
    seconds = report.seconds + quantization.seconds
    done = replace(report, output=str(output), output_bytes=quantization.output_bytes, seconds=seconds)
    return done, quantization
