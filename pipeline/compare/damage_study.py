"""The study of what each projection of each layer alone costs: run, or gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.attention import find_attention
from pipeline.calibration.cache import cache_folder
from pipeline.compare.damage import damage_cells, measured_damage, note_damage
from pipeline.compare.ledger import FORMAT_VERSION
from pipeline.compare.run import Watch, run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.json_text import sha256_of
from pipeline.observations.statistics_file import Calibration


def measure_damage(
    model: GGUFModel,
    settings: StudySettings,
    calibrate: Callable[[], Calibration | None],
    *,
    threshold: float,
    metric: str,
    folder: Path | None = None,
    watch: Watch = lambda progress: None,
) -> dict[str, Any]:
    """Measure what is missing in the study of `folder`, by default one in the cache; the result is JSON.

    Raises as `open_study` and `operate_family` do, SurgeryError when a cell failed.
    """
    (text,) = settings.texts
    if folder is None:
        folder = cache_folder() / f"damage-{sha256_of([FORMAT_VERSION, model.sha256(), text.sha256])[:24]}"
    layers = list(find_attention(model).layers)
    with open_study(folder, model, settings, calibrate) as study:
        note_damage(study.ledger, layers, threshold, metric)
        failures = run_study(study, damage_cells(layers, threshold, metric), watch).failures
        if failures:
            raise SurgeryError(f"{len(failures)} of the measurements failed; first {failures[0]}")
        found = measured_damage(study, layers, threshold, metric)
        return {"threshold": threshold, "text": text.name, "chunks": study.chunks(text), "layers": found}
