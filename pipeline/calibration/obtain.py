"""The statistics that an operation needs, by what a user calls them: a file of statistics, or a text to take them on."""

from pathlib import Path

from pipeline.calibration.calibrate import DEFAULT_CHUNKS, calibrate
from pipeline.calibration.statistics_file import Calibration, open_calibration
from pipeline.errors import UsageError, no_file
from pipeline.files.texts import CALIBRATION_TEXT, Text, read_text
from pipeline.gguf_file.reader import GGUFModel
from pipeline.progress import Progress, silent


def obtain_calibration(
    model: GGUFModel,
    name: str = CALIBRATION_TEXT,
    *,
    metric: str = "attention",
    threads: int = 0,
    progress: Progress = silent,
    probing: Progress = silent,
) -> Calibration:
    """The statistics in the file `name`, or those of the text `name`, which are taken now unless they are cached.

    `metric` says what they are for: `attention` needs sensitivities as well. Raises UsageError when `name` is neither,
    SurgeryError when the file is damaged, and as `calibrate` does.
    """
    path = Path(name).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return open_calibration(path)
    return calibrate(
        model,
        _text_to_calibrate_on(name),
        chunks=DEFAULT_CHUNKS,
        threads=threads,
        sensitivities=metric == "attention",
        progress=progress,
        probing=probing,
    )


def _text_to_calibrate_on(name: str) -> Text:
    try:
        return read_text(name)
    except UsageError:
        raise UsageError(
            f"--calibration {name}: {no_file(Path(name).expanduser())}; name statistics that surgery calibrate wrote,"
            " or a text"
        ) from None
