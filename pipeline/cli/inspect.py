"""`surgery inspect`: what a model is made of."""

from typing import Any

import click

from pipeline.cli.options import json_option, model_argument
from pipeline.cli.output import ProgressReport, print_json, print_table
from pipeline.inspection import SPECTRUM_GROUPS, SPECTRUM_THRESHOLDS, spectra, summarise
from pipeline.sources import open_model


@click.command("inspect")
@model_argument
@click.option("--spectrum", is_flag=True, help="Also the ranks that shares of the variance need, layer by layer.")
@json_option
def command(model: str, spectrum: bool, as_json: bool) -> None:
    """Show MODEL's architecture, heads, tensor types and parameter counts."""
    opened = open_model(model)
    summary = summarise(opened)
    if spectrum:
        with ProgressReport("decomposing", unit="layers", total=summary["layers"]) as report:
            summary["spectrum"] = []
            for layer in spectra(opened):
                summary["spectrum"].append(layer)
                report.advance(1)
    if as_json:
        print_json(summary | {"spectrum_thresholds": SPECTRUM_THRESHOLDS} if spectrum else summary)
        return
    print_summary(summary)
    if spectrum:
        print_spectrum(summary["spectrum"])


def print_summary(summary: dict[str, Any]) -> None:
    for label, key in (
        ("file", "path"),
        ("name", "name"),
        ("architecture", "architecture"),
        ("layers", "layers"),
        ("width", "embedding_length"),
        ("context", "context_length"),
    ):
        click.echo(f"{label:<14}{summary[key]}")
    click.echo(f"{'heads':<14}{summary['heads']} query, {summary['kv_heads']} key/value")
    click.echo(f"{'size':<14}{summary['file_bytes'] / 1e6:,.1f} MB, {summary['parameters']:,} parameters\n")
    print_table(
        ("type", "tensors", "MB"),
        [(name, t["tensors"], f"{t['bytes'] / 1e6:,.1f}") for name, t in summary["types"].items()],
    )
    click.echo()
    total = summary["parameters"]
    print_table(
        ("tensor", "parameters", "share"),
        [(kind, f"{count:,}", f"{count / total:.1%}") for kind, count in summary["parameters_by_kind"].items()],
    )
    for key, value in summary["surgery"].items():
        click.echo(f"{key:<24}{value if not isinstance(value, list) or len(value) < 200 else f'{len(value)} numbers'}")


def print_spectrum(layers: list[dict[str, Any]]) -> None:
    shares = " ".join(f"{threshold:g}" for threshold in SPECTRUM_THRESHOLDS)
    click.echo(f"\nranks that keep {shares} of the variance")
    rows = [
        (layer["layer"], *(" ".join(f"{rank:>4}" for rank in layer["ranks"][group]) for group in SPECTRUM_GROUPS))
        for layer in layers
    ]
    print_table(["layer", *map("+".join, SPECTRUM_GROUPS)], rows)
