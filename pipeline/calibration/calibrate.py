"""Take calibration statistics: run a model over a text, once; what was taken is kept in the user's cache folder."""

import hashlib
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from native.capture import CapturedPart, CaptureStart, capture_moments
from native.isolated import isolated
from native.model import ContextOptions
from pipeline.attention import find_attention
from pipeline.calibration.cache import cache_folder
from pipeline.calibration.sensitivity import measure_sensitivities
from pipeline.calibration.statistics_file import (
    FORMAT_VERSION,
    Calibration,
    CalibrationSource,
    MomentSums,
    add_sensitivities,
    open_calibration,
    resume_sums,
    tokenizer_sha256,
    write_calibration,
)
from pipeline.errors import SurgeryError, UsageError
from pipeline.files.output_file import check_output, complete_or_absent
from pipeline.files.texts import Text
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import DEFAULT_ALIGNMENT, GGUFModel
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.progress import Progress, silent

CHUNK_SIZE = 512  # tokens
DEFAULT_CHUNKS = 64
SECONDS_BETWEEN_SAVES = 15.0


def calibrate(
    model: GGUFModel,
    text: Text,
    *,
    chunks: int = DEFAULT_CHUNKS,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 0,
    sensitivities: bool = True,
    progress: Progress = silent,
    probing: Progress = silent,
) -> Calibration:
    """The statistics of `model` over the first `chunks` chunks of `text`: from the cache, or taken now.

    An interrupted run goes on where it last saved its sums. `sensitivities`, which metric `attention` needs, are
    measured as well; `progress` counts chunks, `probing` projections. Raises UsageError for a number of chunks out of
    range, NativeError when llama.cpp cannot load or run the model or the text is shorter than a chunk.
    """
    if chunks < 1:
        raise UsageError(f"--chunks {chunks}: expected at least 1")
    attention = find_attention(model)
    attention.require_plain(model, "calibrating")
    wanted = CalibrationSource(
        model.name,
        model.sha256(),
        tokenizer_sha256(model),
        text.name,
        text.sha256,
        chunks,
        chunk_size,
    )
    path = cached_path(wanted)
    calibration = cached_calibration(path)
    if calibration is None:
        layers = {projections["q"].tensor: layer for layer, projections in attention.layers.items()}
        _capture(model, text, wanted, layers, path, threads, progress)
        calibration = open_calibration(path)
    if sensitivities and not calibration.has_sensitivities:
        add_sensitivities(calibration, measure_sensitivities(model, calibration, text, threads, probing))
        calibration = open_calibration(path)
    # the same text may have had another name, or been named from another folder, when they were taken
    return replace(calibration, source=replace(calibration.source, text_name=text.name))


def cached_calibration(path: Path) -> Calibration | None:
    """The statistics at `path`, if they are there and whole; damaged ones are deleted."""
    if path.exists():
        try:
            return open_calibration(path)
        except SurgeryError:
            path.unlink()  # damaged; take it again
    return None


def cached_path(source: CalibrationSource) -> Path:
    """Where statistics of `source` are kept: a name made of its hashes, so that a copy elsewhere is found as well."""
    facts = {key: value for key, value in asdict(source).items() if not key.endswith("_name")} | {"v": FORMAT_VERSION}
    name = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:24]
    return cache_folder() / f"calibration-{name}.gguf"


def _capture(
    model: GGUFModel,
    text: Text,
    wanted: CalibrationSource,
    layers: dict[str, int],
    path: Path,
    threads: int,
    progress: Progress,
) -> None:
    unfinished = path.with_suffix(".unfinished.gguf")
    sums = MomentSums()
    saved = time.monotonic()
    options = ContextOptions(n_ctx=wanted.chunk_size, n_batch=wanted.chunk_size, threads=threads)
    if unfinished.exists():
        sums = resume_sums(unfinished, wanted)
    events = isolated(
        capture_moments,
        str(model.path),
        text.content,
        layers,
        chunks=wanted.chunk_count,
        skip=sums.chunks,
        options=options,
    )
    start = next(events)
    assert isinstance(start, CaptureStart)
    found = replace(wanted, chunk_count=start.chunks)  # the text may be shorter than what was asked for
    progress(sums.chunks, start.chunks, "going on" if sums.chunks else "")
    for event in events:
        if not isinstance(event, CapturedPart):
            progress(event, start.chunks, "")
            continue
        sums.add(event.chunks, event.attention, event.products)
        if event.chunks and sums.chunks < start.chunks and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            write_calibration(unfinished, found, sums, rope=start.rope, text=start.covered_text, force=True)
            saved = time.monotonic()
    write_calibration(path, found, sums, rope=start.rope, text=start.covered_text, force=True)
    unfinished.unlink(missing_ok=True)


def copy_calibration(calibration: Calibration, output: Path, *, force: bool, sources: tuple[Path, ...]) -> None:
    """Copy a statistics file out of the cache. Raises UsageError for an output that cannot be."""
    with complete_or_absent(output, force=force, sources=sources) as temporary:
        shutil.copyfile(calibration.path, temporary)


def write_importance_matrix(calibration: Calibration, output: Path, *, force: bool, sources: tuple[Path, ...]) -> None:
    """Write an importance matrix in llama.cpp's GGUF form: for each weight the sums of its inputs' squares, the counts.

    Format: tools/imatrix/imatrix.cpp, save_imatrix. Raises UsageError for an output that cannot be.
    """
    check_output(output, force=force, sources=sources)
    source = calibration.source
    metadata = [
        metadata_entry("general.type", "imatrix"),
        metadata_entry("imatrix.datasets", [source.text_name]),
        metadata_entry("imatrix.chunk_count", source.chunk_count),
        metadata_entry("imatrix.chunk_size", source.chunk_size),
    ]
    arrays: dict[str, np.ndarray] = {}
    for name, (squares, count) in sorted(calibration.products().items()):
        arrays[f"{name}.in_sum2"] = squares.astype(np.float32).reshape(1, -1)
        arrays[f"{name}.counts"] = np.full((1, 1), count, np.float32)
    declarations = [TensorDeclaration(name, values.shape, GGMLQuantizationType.F32) for name, values in arrays.items()]
    with create_gguf(
        output, metadata, declarations, alignment=DEFAULT_ALIGNMENT, force=force, sources=sources
    ) as writer:
        for name, values in arrays.items():
            writer.put(name, values.view(np.uint8))
