"""Take calibration statistics: run a model over a text, once; what was taken is kept in the user's cache folder."""

import hashlib
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from native.capture import CapturedPart, CaptureStart, Watched, capture_moments
from native.isolated import isolated
from native.model import ContextOptions
from pipeline.attention import AttentionMap, find_projections
from pipeline.calibration.cache import cache_folder
from pipeline.calibration.sensitivity import measure_sensitivities
from pipeline.errors import SurgeryError, UsageError
from pipeline.files.open_file import lock
from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import Text, named
from pipeline.layers import AttentionLayers
from pipeline.observations.moments import MomentSums
from pipeline.observations.statistics_file import (
    FORMAT_VERSION,
    Calibration,
    CalibrationOrigin,
    add_sensitivities,
    open_calibration,
    resume_sums,
    tokenizer_sha256,
    write_calibration,
)
from pipeline.progress import Progress, silent
from pipeline.revision import revisions
from pipeline.targets import QKV, TARGETS

CHUNK_SIZE = 512  # tokens
DEFAULT_CHUNKS = 64
SECONDS_BETWEEN_SAVES = 15.0
MOST_APART = 1 << 25  # numbers of second moments of each expert's inputs: sums of that many take 768 MB


def calibrate(
    model: GGUFModel,
    text: Text,
    *,
    chunks: int = DEFAULT_CHUNKS,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 0,
    roles: Collection[str] = QKV,
    sensitivities: bool = True,
    progress: Progress = silent,
    probing: Progress = silent,
) -> Calibration:
    """The statistics of `model` over the first `chunks` chunks of `text`: from the cache, or taken now.

    An interrupted run goes on where it last saved its sums; while another process takes the same ones, this waits for
    them. Of what is observed beside q, k and v all is, if `roles`, members of TARGETS, are beyond these.
    The `sensitivities` of `roles`, which metric `attention` needs, are measured as well, unless they are known. Chunks
    have `chunk_size` tokens, or as many as the model has learned positions; `progress` counts chunks, `probing`
    projections. Raises UsageError for a number of chunks out of range, NativeError when llama.cpp cannot load or run
    the model, SurgeryError when the text is shorter than a chunk.
    """
    if chunks < 1:
        raise UsageError.of("chunks", chunks, "expected at least 1")
    wide = not QKV.issuperset(roles)
    attention = find_projections(model, TARGETS if wide else QKV)
    wanted = CalibrationOrigin(
        model.name,
        model.sha256(),
        tokenizer_sha256(model),
        text.name,
        text.sha256,
        chunks,
        min(chunk_size, learned_positions(model) or chunk_size),
        " ".join(revisions("calibration").values()),
        "all" if wide else "qkv",
    )
    path = cached_path(wanted)
    calibration = cached_calibration(path)
    if calibration is None or (sensitivities and AttentionLayers(model, calibration, roles).unprobed):

        def waiting() -> None:
            progress(0, chunks, "another process takes them; waiting for it")

        with lock(path.with_suffix(".lock"), waiting):
            calibration = cached_calibration(path)
            if calibration is None:
                _capture(model, text, wanted, watched_inputs(attention), path, threads, progress)
                calibration = open_calibration(path)
            if sensitivities and (missing := AttentionLayers(model, calibration, roles).unprobed):
                journal = path.with_suffix(".probes.jsonl")
                nats = measure_sensitivities(
                    model, calibration, text, missing, journal, threads=threads, progress=probing
                )
                add_sensitivities(calibration, nats)
                journal.unlink()
                calibration = open_calibration(path)
    # the same text may have had another name, or been named from another folder, when they were taken
    return replace(calibration, origin=replace(calibration.origin, text_name=text.name))


def learned_positions(model: GGUFModel) -> int | None:
    """How many positions a model has learned, one by one, and has none beyond; None if it reckons with them."""
    matrix = model.tensors.get("position_embd.weight")
    return matrix.shape[0] if matrix else None


def watched_inputs(attention: AttentionMap) -> dict[str, Watched]:
    """By the name of a weight, the inputs of layers that are observed there: at a product, or after a norm's weight.

    Each expert's apart as far as MOST_APART allows it, see `pipeline.observations.experts`.
    """
    blocks = [*attention.layers.values(), *chain.from_iterable(each.values() for each in attention.beside.values())]
    apart = _numbers_apart(attention) <= MOST_APART
    watched: dict[str, Watched] = {}
    for projection in chain.from_iterable(block.values() for block in blocks):
        norm = projection.input == "kv_latent"  # which may reach a product in turned order: k_b is absorbed into q
        name = f"blk.{projection.layer}.attn_kv_a_norm.weight" if norm else projection.tensor
        wanted = Watched(projection.layer, projection.family_input, projection.attended, projection.by_result)
        if projection.block.expert is not None:  # what down reads are features of each expert's own
            wanted = replace(wanted, together=projection.role != "down", apart=apart)
        if wanted not in watched.values() and (wanted.together or wanted.apart):
            watched[name] = wanted
    return watched


def _numbers_apart(attention: AttentionMap) -> int:
    """How many numbers the second moments of what each expert is given would take."""
    inputs = {
        (projection.layer, projection.input): projection.columns
        for blocks in attention.beside.values()
        for block, projections in blocks.items()
        if block.expert is not None
        for projection in projections.values()
    }
    return sum(d * (d + 1) // 2 for d in inputs.values())


def cached_calibration(path: Path) -> Calibration | None:
    """What the cache has under this name; None for nothing, or a damaged file, to be taken again."""
    if not path.exists():
        return None
    try:
        return open_calibration(path)
    except SurgeryError:
        return None


def cached_path(source: CalibrationOrigin) -> Path:
    """Where statistics of `source` are kept: a name made of its hashes, so that a copy elsewhere is found as well.

    The revision of the code and llama.cpp's version are among them: what another one took is taken again.
    """
    facts = {key: value for key, value in asdict(source).items() if not key.endswith("_name")} | {"v": FORMAT_VERSION}
    name = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:24]
    return cache_folder() / f"calibration-{name}.gguf"


def _capture(
    model: GGUFModel,
    text: Text,
    wanted: CalibrationOrigin,
    watched: dict[str, Watched],
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
        watched,
        chunks=wanted.chunk_count,
        skip=sums.chunks,
        options=options,
    )
    events = named([text], events)
    start = next(events)
    assert isinstance(start, CaptureStart)
    found = replace(wanted, chunk_count=start.chunks)  # the text may be shorter than what was asked for
    progress(sums.chunks, start.chunks, "going on" if sums.chunks else "")
    for event in events:
        if not isinstance(event, CapturedPart):
            progress(event, start.chunks, "")
            continue
        sums.add(event.chunks, event.inputs, event.products)
        if event.chunks and sums.chunks < start.chunks and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            write_calibration(unfinished, found, sums, rope=start.rope, text=start.covered_text, force=True)
            saved = time.monotonic()
    model.require_unchanged(by_name=True)  # llama.cpp opened it by its name
    write_calibration(path, found, sums, rope=start.rope, text=start.covered_text, force=True)
    unfinished.unlink(missing_ok=True)
