"""Statistics over several texts: the sums over each, added up, so that each text counts by its chunks."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from pipeline.calibration.calibrate import cached_calibration, cached_path
from pipeline.errors import UsageError
from pipeline.observations.statistics_file import (
    Calibration,
    add_sensitivities,
    open_calibration,
    read_sums,
    write_calibration,
)


def mix(calibrations: Sequence[Calibration]) -> Calibration:
    """Statistics of one model over several texts as those over all; the first alone are given back as they are.

    What errors cost is the mean over the chunks. Kept in the cache folder. Raises UsageError for statistics of
    different models or chunk sizes.
    """
    first, *others = calibrations
    if not others:
        return first
    for other in others:
        for what in ("model_sha256", "tokenizer_sha256", "chunk_size", "targets"):
            if getattr(other.origin, what) != getattr(first.origin, what):
                raise UsageError(f"`calibration`: {first.path} and {other.path} cannot be mixed, their {what} differs")
    sources = [calibration.origin for calibration in calibrations]
    source = replace(
        first.origin,
        text_name=",".join(source.text_name for source in sources),
        text_sha256=hashlib.sha256("".join(source.text_sha256 for source in sources).encode()).hexdigest(),
        chunk_count=sum(source.chunk_count for source in sources),
        revision=", ".join(dict.fromkeys(source.revision for source in sources)),
    )
    path = cached_path(source)
    kept = cached_calibration(path)
    probed = [role for role in first.probed if all(role in other.probed for other in others)]
    if kept and set(probed) <= set(kept.probed):
        return replace(kept, origin=source)
    sums = read_sums(first, first.origin.chunk_count)
    for other in others:
        more = read_sums(other, other.origin.chunk_count)
        sums.add(more.chunks, more.inputs, more.products)
    text = "\n\n".join(calibration.text.content for calibration in calibrations)
    write_calibration(path, source, sums, rope=first.rope, text=text, force=True)
    mixed = open_calibration(path)
    if probed:
        add_sensitivities(mixed, {role: _mean_sensitivities(calibrations, role) for role in probed})
        mixed = open_calibration(path)
    return mixed


def _mean_sensitivities(calibrations: Sequence[Calibration], role: str) -> list[float]:
    """By layer, each text's weighted by its chunks."""
    chunks = [calibration.origin.chunk_count for calibration in calibrations]
    by_layer = zip(*(calibration.sensitivities(role) for calibration in calibrations), strict=True)
    return [sum(n * nats for n, nats in zip(chunks, each, strict=True)) / sum(chunks) for each in by_layer]
