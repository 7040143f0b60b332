"""The statistics that an operation needs, by what a user calls them: files of statistics, or texts to take them on."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from native.errors import NativeError
from pipeline.calibration.calibrate import DEFAULT_CHUNKS, calibrate
from pipeline.calibration.mixture import mix
from pipeline.calibration.self_text import SELF_TEXT, is_self, own_seed, write_self_text
from pipeline.errors import SurgeryError, UsageError, no_file
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import AUTO_TEXT, CALIBRATION_TEXT, Text, read_text
from pipeline.observations.statistics_file import Calibration, open_calibration, require_fit
from pipeline.progress import Progress, silent
from pipeline.targets import QKV

LONGEST = 3600.0
"""Seconds for which a model writes unasked; beyond, `auto` is CALIBRATION_TEXT. Calibrating takes some three times that."""


@dataclass(frozen=True)
class CalibrationWatch:
    """Who is told how far calibrating is: `capturing` counts chunks, `probing` projections, `writing` tokens.

    `announce` hears, soon after it began, how many tokens the model is to write and how many seconds that will take;
    `instead`, what `auto` is when it is not what the model writes, and why.
    """

    capturing: Progress = silent
    probing: Progress = silent
    writing: Progress = silent
    announce: Callable[[int, float], None] = lambda tokens, seconds: None
    instead: Callable[[str], None] = lambda reason: None


def obtain_calibration(
    model: GGUFModel,
    names: str = AUTO_TEXT,
    *,
    chunks: int = DEFAULT_CHUNKS,
    metric: str = "attention",
    roles: Collection[str] = QKV,
    threads: int = 0,
    watch: CalibrationWatch = CalibrationWatch(),
    argument: str = "calibration",
) -> Calibration:
    """The statistics in the file `names`, or those of the text `names`, which are taken now unless they are cached.

    `names` may be several, with commas between: each counts by its chunks, a text by up to `chunks`. `self` is a text
    that the model writes; `auto` is that, too, unless it would take longer than LONGEST or the model cannot write.
    `metric` and `roles`, members of TARGETS, say what they are for: `attention` needs sensitivities, too. Raises UsageError
    for a name that is neither (`argument` is where it came from) or statistics of another model, SurgeryError when a file
    is damaged, and as `calibrate` and `write_self_text` do.
    """
    parts = [_find(name, argument) for name in split_names(names, argument)]  # all, before anything takes long
    calibrations = []
    for part in parts:
        if isinstance(part, Calibration):
            require_fit(part, model, roles)
            calibrations.append(part)
            continue
        text = written_text(model, part, chunks, threads, watch) if isinstance(part, str) else part
        calibrations.append(
            calibrate(
                model, text,
                chunks=chunks, threads=threads, roles=roles, sensitivities=metric == "attention",
                progress=watch.capturing, probing=watch.probing,
            )
        )  # fmt: skip
    return mix(calibrations)


def split_names(names: str, argument: str) -> list[str]:
    """What is between commas; a file whose name has commas is one. Raises UsageError for nothing, or one name twice."""
    if Path(names).expanduser().is_file():
        return [names]
    parts = [name.strip() for name in names.split(",")]
    if not all(parts):
        raise UsageError.of(argument, names, "expected a name before and behind each comma")
    if twice := [name for name in parts if parts.count(name) > 1]:
        raise UsageError.of(argument, names, f"names {twice[0]} twice; each counts by its chunks")
    return parts


def written_text(model: GGUFModel, name: str, chunks: int, threads: int, watch: CalibrationWatch) -> Text:
    """`chunks` chunks that the model writes, or wrote before: `self`, `self:SEED`, or `auto`, which may be another text.

    Raises as `write_self_text` does, for `auto` UsageError alone.
    """

    def write(name: str, most_seconds: float | None) -> Text:
        return write_self_text(
            model, name,
            chunks=chunks, threads=threads, progress=watch.writing, announce=watch.announce, most_seconds=most_seconds,
        )  # fmt: skip

    if name != AUTO_TEXT:
        return write(name, None)
    try:
        return write(SELF_TEXT, LONGEST)
    except UsageError:
        raise
    except (SurgeryError, NativeError) as reason:
        watch.instead(f"{reason}; calibrating on {CALIBRATION_TEXT} instead; a text like what it is to read is better")
        return read_text(CALIBRATION_TEXT)


def _find(name: str, argument: str) -> Calibration | Text | str:
    """Statistics, a text, or the name of a text that is to be written."""
    if name == AUTO_TEXT:
        return name
    if is_self(name):
        own_seed(name)
        return name
    path = Path(name).expanduser()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return open_calibration(path)
    try:
        return read_text(name, argument)
    except UsageError:
        raise UsageError.of(
            argument, Path(name),
            f"{no_file(path)}; name a text, {SELF_TEXT} (which the model writes), statistics that surgery calibrate"
            " wrote, or several with commas between",
        ) from None  # fmt: skip
