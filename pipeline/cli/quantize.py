"""`surgery quantize`: llama.cpp's quantiser."""

from pathlib import Path

import click

from pipeline.cli.options import force_option, json_option, threads_option
from pipeline.cli.output import counted, echo, print_json, warn
from pipeline.cli.progress_report import ProgressReport
from pipeline.cli.sections import SurgeryCommand
from pipeline.inputs.models import open_model
from pipeline.quantization import Quantization, known_type, quantize, quantized_types, require_weighing


@click.command("quantize", cls=SurgeryCommand)
@click.argument("model")
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="TYPE")
@click.option("--imatrix", type=click.Path(path_type=Path), help="An importance matrix in llama.cpp's GGUF form.")
@threads_option
@force_option
@json_option
def command(
    model: str, output: Path, type_name: str, imatrix: Path | None, threads: int, force: bool, as_json: bool
) -> None:
    """Quantise MODEL to OUTPUT as TYPE: Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, IQ4_XS, F16 and all others of llama.cpp."""
    known_type(type_name)
    if imatrix:
        require_weighing(type_name)
    source = open_model(model)
    if types := quantized_types(source):
        warn(f"{source.path.name} is quantised already ({', '.join(types)}); quantising it again adds loss to loss")
    with ProgressReport(f"quantising to {type_name}", unit="tensors") as report:
        result = quantize(
            source,
            output,
            type_name,
            importance_matrix=imatrix,
            threads=threads,
            force=force,
            progress=report.update,
        )
    if as_json:
        print_json(result.to_dict())
        return
    print_quantization(result)
    echo(
        f"wrote {output}: {result.source_bytes / 1e6:,.1f} MB -> {result.output_bytes / 1e6:,.1f} MB in {result.seconds:.1f} s"
    )


def print_quantization(result: Quantization) -> None:
    """Which tensors are of another type than was asked for, and what the importance matrix covers."""
    if fallbacks := result.fallbacks:
        echo(
            f"{counted(len(fallbacks), 'tensor')} fell back to another type, as their width does not fit {result.type}:"
        )
        for name, fallback in fallbacks.items():
            echo(f"  {name:<32} {fallback}")
    if result.importance:
        echo(f"importance matrix: {result.importance}")
