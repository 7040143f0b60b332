"""What `surgery inspect --damage` does: measure each projection of each layer operated on alone, and print it."""

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cli.calibrate import calibration_for_metric
from pipeline.cli.output import echo, print_table
from pipeline.cli.study_display import StudyDisplay
from pipeline.compare.damage import TARGETS
from pipeline.compare.damage_study import measure_damage
from pipeline.compare.study import StudySettings
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import read_text


def damage(
    model: GGUFModel, *, threshold: float, metric: str, calibration: str, text: str, chunks: int, threads: int,
    folder: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """What `measure_damage` finds, with progress."""
    settings = StudySettings((read_text(text),), chunks=chunks, threads=threads, answer_tokens=0)
    calibrate = partial(calibration_for_metric, model, calibration, metric, threads)
    with StudyDisplay() as display:
        return measure_damage(
            model, settings, calibrate, threshold=threshold, metric=metric, folder=folder, watch=display.watch
        )


def print_damage(found: dict[str, Any]) -> None:
    """KL divergences by layer with half of their 95 % intervals, and what is hit hardest."""
    echo(
        f"\nKL divergence in nats a token when that alone keeps {found['threshold']:g} of its variance"
        f" ({found['text']}, {found['chunks']} chunks; rank in brackets)"
    )
    rows = [(layer["layer"], *(_entry(layer[targets]) for targets in TARGETS)) for layer in found["layers"]]
    print_table(("layer", *TARGETS), rows)
    single = [(layer[t]["kld_mean"], layer["layer"], t) for layer in found["layers"] for t in TARGETS[:-1]]
    worst = sorted(single, reverse=True)[:3]
    echo("hit hardest: " + ", ".join(f"{t} of layer {layer} ({kld:.4f})" for kld, layer, t in worst))


def _entry(cell: dict[str, Any]) -> str:
    half = (cell["high"] - cell["low"]) / 2 if cell["low"] is not None else float("nan")
    return f"{cell['kld_mean']:.4f} ± {half:.4f} ({' '.join(map(str, cell['ranks'].values()))})"
