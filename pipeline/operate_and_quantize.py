"""Operate on a model, then put the whole file through llama.cpp's quantiser."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.gguf_reader import GGUFModel, open_gguf
from pipeline.operate import OperationReport, operate
from pipeline.output_file import check_output
from pipeline.plan import Plan
from pipeline.quantization import QuantizationProgress, quantize


def operate_and_quantize(
    model: GGUFModel,
    output: Path,
    plan: Plan,
    kind: str,
    *,
    threads: int = 0,
    force: bool = False,
    on_bytes: Callable[[int], None] = lambda count: None,
    progress: QuantizationProgress = QuantizationProgress(),
) -> tuple[OperationReport, dict[str, Any]]:
    """Write `output` as `operate` and then `quantize` would; what comes in between lives in a folder that is removed."""
    check_output(output, force=force, sources=model.paths)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as folder:
        between = Path(folder) / "operated.gguf"
        report = operate(model, between, plan, on_bytes=on_bytes)
        quantization = quantize(open_gguf(between), output, kind, threads=threads, force=force, progress=progress)
    report.output, report.output_bytes = str(output), quantization["output_bytes"]
    report.seconds += quantization["seconds"]
    return report, quantization
