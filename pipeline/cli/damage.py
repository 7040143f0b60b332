"""What `surgery inspect --damage` does: measure each projection of each layer operated on alone, and print it."""

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.attention import find_attention
from pipeline.calibration.cache import cache_folder
from pipeline.cli.calibrate import calibration_for_metric
from pipeline.cli.output import counted, echo, print_table
from pipeline.cli.study_display import StudyDisplay
from pipeline.compare.cell import sha256_of
from pipeline.compare.damage import TARGETS, damage_cells, measured_damage, note_damage
from pipeline.compare.ledger import FORMAT_VERSION
from pipeline.compare.run import run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.errors import SurgeryError
from pipeline.files.texts import read_text
from pipeline.gguf_file.reader import GGUFModel


def damage(
    model: GGUFModel, *, threshold: float, metric: str, calibration: str, text: str, chunks: int, threads: int,
    folder: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Measure what is missing in the study of `folder`, by default one in the cache; the result is JSON.

    Raises as `open_study` and `operate_family` do, SurgeryError when a cell failed.
    """
    settings = StudySettings((read_text(text),), chunks=chunks, threads=threads, answer_tokens=0)
    if folder is None:
        folder = cache_folder() / f"damage-{sha256_of([FORMAT_VERSION, model.sha256(), settings.texts[0].sha256])[:24]}"
    layers = list(find_attention(model).layers)
    cells = damage_cells(layers, threshold, metric)
    calibrate = partial(calibration_for_metric, model, calibration, metric, threads)
    with open_study(folder, model, settings, calibrate) as study:
        note_damage(study.ledger, layers, threshold, metric)
        with StudyDisplay() as display:
            progress = run_study(study, cells, display.watch)
        if progress.failures:
            raise SurgeryError(f"{counted(len(progress.failures), 'measurement')} failed; first {progress.failures[0]}")
        found = measured_damage(study, layers, threshold, metric)
        return {
            "threshold": threshold,
            "text": settings.texts[0].name,
            "chunks": study.chunks(settings.texts[0]),
            "layers": found,
        }


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
