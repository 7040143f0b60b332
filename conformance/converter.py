"""Surgery's converter held against llama.cpp's own, tensor by tensor and key by key, on a checkpoint of every family."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFValueType

from conformance.known import MEANT, Difference
from conformance.outcome import WrongError
from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from pipeline.gguf_file.reader import GGUFModel, open_gguf

OUTTYPES = ("f32", "f16", "bf16")
CLOSE = 1e-6  # of a computed tensor's size: in float32 there, in float64 here
ABSENT = "absent"


class Job(NamedTuple):
    """One conversion by both: a checkpoint, a type, two files; `pre` is the pre-tokenizer's name, if theirs is told it."""

    name: str
    folder: Path
    outtype: str
    ours: Path
    theirs: Path
    pre: str | None


def check_converter(sources: Path) -> str:
    """Convert everything with both and compare; raises WrongError naming every difference that is not meant.

    `sources` is llama.cpp's folder. What is meant and no longer occurs is an error, too: a reason without a fact.
    """
    with tempfile.TemporaryDirectory(prefix="conformance-converter-") as scratch:
        jobs = list(_convert_with_ours(Path(scratch)))
        failures = _convert_with_theirs(sources, jobs)
        tensors, keys = 0, 0
        found: dict[Difference, None] = {}
        for job, failure in zip(jobs, failures, strict=True):
            if failure is not None:
                found[Difference(job.name, "conversion", "works", failure)] = None
                continue
            ours, theirs = open_gguf(job.ours), open_gguf(job.theirs)
            found |= dict.fromkeys(_differences(job.name, ours, theirs))
            tensors, keys = tensors + len(ours.tensors), keys + len(ours.metadata)
    unknown = [str(difference) for difference in found if not any(meant.covers(difference) for meant in MEANT)]
    unknown += [
        f"no difference in {meant.what} of {meant.checkpoints} any more"
        for meant in MEANT
        if not any(map(meant.covers, found))
    ]
    if unknown:
        raise WrongError("\n".join(unknown))
    names = {job.name for job in jobs}
    return f"{len(names)} checkpoints as {', '.join(OUTTYPES)}: {tensors} tensors, {keys} keys"


def _convert_with_ours(scratch: Path) -> Iterator[Job]:
    from tests.convert.checkpoints import CHECKPOINTS, make_checkpoint

    for name in CHECKPOINTS:
        folder = make_checkpoint(scratch / name, name)
        for outtype in OUTTYPES:
            model, output = open_checkpoint(folder, outtype=outtype), scratch / f"{name}.{outtype}.ours.gguf"
            write_model(model, output)
            byte_level = model.get("tokenizer.ggml.model") == "gpt2"
            pre = model.get("tokenizer.ggml.pre") if byte_level else None
            yield Job(name, folder, outtype, output, scratch / f"{name}.{outtype}.theirs.gguf", pre)


def _convert_with_theirs(sources: Path, jobs: Sequence[Job]) -> list[str | None]:
    """What went wrong with each job, None where nothing did."""
    done = subprocess.run(
        [sys.executable, "-m", "conformance.their_converter", sources],
        input=json.dumps([job._asdict() for job in jobs], default=str), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise WrongError(f"convert_hf_to_gguf.py does not run: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
    failures: list[str | None] = json.loads(done.stdout)
    return failures


def _differences(name: str, ours: GGUFModel, theirs: GGUFModel) -> Iterator[Difference]:
    for key in sorted(ours.metadata.keys() | theirs.metadata.keys()):
        one, other = ours.metadata.get(key), theirs.metadata.get(key)
        if one is None or other is None or one.raw != other.raw:
            yield Difference(name, key, *_shown(ours, theirs, key))
    for tensor in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        shown = [
            f"{m.tensors[tensor].type.name} {m.tensors[tensor].shape}" if tensor in m.tensors else ABSENT
            for m in (ours, theirs)
        ]
        if shown[0] != shown[1]:
            yield Difference(name, tensor, *shown)
        elif not np.array_equal(ours.read_raw(tensor), theirs.read_raw(tensor)):
            size = np.linalg.norm(theirs.read(tensor))
            error = np.linalg.norm(ours.read(tensor) - theirs.read(tensor)) / size
            yield Difference(name, tensor, f"the same to {CLOSE:g}" if error < CLOSE else f"differs by {error:.1e}", "")


def _shown(ours: GGUFModel, theirs: GGUFModel, key: str) -> tuple[str, str]:
    """What both say of a key, short: of lists the first entry that differs, and their lengths where these differ."""
    kinds: list[GGUFValueType | None] = [m.metadata[key].kind if key in m.metadata else None for m in (ours, theirs)]
    values: list[Any] = [m.get(key) for m in (ours, theirs)]
    if kinds[0] != kinds[1] or not isinstance(values[0], list):
        return _value(kinds[0], values[0]), _value(kinds[1], values[1])
    if len(values[0]) != len(values[1]):
        return f"{len(values[0])} entries", f"{len(values[1])} entries"
    first = next(i for i, (a, b) in enumerate(zip(*values, strict=True)) if a != b)
    return f"{first}: {values[0][first]}", f"{first}: {values[1][first]}"


def _value(kind: GGUFValueType | None, value: Any) -> str:
    return ABSENT if kind is None else f"{value:.7g}" if isinstance(value, float) else str(value)
