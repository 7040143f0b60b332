"""Calibration statistics: moments of what a model's layers read over a text, in a file that knows whose they are.

The file is a GGUF file: sums over all tokens as F32 (as F64 while a run is unfinished), symmetric matrices as their
lower triangles, row by row. Its metadata name the model, its tokenizer and the text by SHA-256, and hold a checksum
of everything in it.
"""

import hashlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.errors import SurgeryError, UsageError
from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry
from pipeline.gguf_file.reader import DEFAULT_ALIGNMENT, NAME_ERRORS, GGUFModel, open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.inputs.texts import Text
from pipeline.observations.contamination import line_sketch
from pipeline.observations.moments import LayerMoments, MomentSums, fit, unpack
from pipeline.projection import ATTENTION_INPUT
from pipeline.targets import QKV, TARGETS, target_roles

KIND = "surgery.calibration"
FORMAT_VERSION = 3
CHECKSUM = "calibration.checksum"
SENSITIVITY = "calibration.sensitivity"
COVERED_TEXT = "calibration.covered_text"
MATRICES = ("second_moment", "received")


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, each made anew when it is asked for: all of them may be more than memory holds."""

    def __init__(self, names: Collection[str], make: Callable[[str], np.ndarray]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> np.ndarray:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class CalibrationOrigin:
    """What statistics were taken from: a model, its tokenizer and a text by SHA-256, and how much of the text.

    `revision` is that of the code that took them, and llama.cpp's version; empty where a file does not say.
    `targets` are the projections of which something was observed, `qkv` or `all`.
    """

    model_name: str
    model_sha256: str
    tokenizer_sha256: str
    text_name: str
    text_sha256: str
    chunk_count: int
    chunk_size: int
    revision: str = ""
    targets: str = "qkv"


@dataclass(frozen=True)
class Calibration:
    """Statistics in a file, checked."""

    path: Path
    origin: CalibrationOrigin
    rope: str
    file: GGUFModel = field(repr=False)

    @property
    def text(self) -> Text:
        """The text that was decoded, which may be the beginning of what its name stood for."""
        return Text(self.origin.text_name, self.file.get(COVERED_TEXT))

    @property
    def sketch(self) -> list[int]:
        """The sketch of that text, see `pipeline.observations.contamination`."""
        return line_sketch(self.text.content)

    @property
    def roles(self) -> frozenset[str]:
        """The targets that there are statistics for, if the model has them."""
        return target_roles(self.origin.targets)

    @property
    def probed(self) -> list[str]:
        """The roles whose sensitivities were measured."""
        return [key.removeprefix(f"{SENSITIVITY}.") for key in self.file.metadata if key.startswith(SENSITIVITY)]

    def sensitivities(self, role: str) -> list[float]:
        """By layer, the nats a token that an error of a role's whole energy would cost, where measured."""
        return list(self.file.get(f"{SENSITIVITY}.{role}"))

    def sensitivity(self, role: str, layer: int) -> float:
        """That of one layer. 1 if it was not measured."""
        return float(self.sensitivities(role)[layer]) if role in self.probed else 1.0

    def layer(self, number: int, name: str = ATTENTION_INPUT) -> LayerMoments:
        """The moments of an input of a layer, read now. Raises SurgeryError for one that was not observed."""
        prefix = f"blk.{number}.{name}."
        if not {prefix + "sum", prefix + "count"} <= self.file.tensors.keys():
            raise SurgeryError(f"{self.path}: holds no statistics of {name} of layer {number}; calibrate again")
        tokens = self.file.read(prefix + "count")[0]
        mean, inputs, received = (
            self.file.read(prefix + what).astype(np.float64) / tokens if prefix + what in self.file.tensors else None
            for what in ("sum", *MATRICES)
        )
        if mean is None or inputs is None or not fit(mean, inputs, received):
            raise SurgeryError(f"{self.path}: the statistics of layer {number} do not fit together; calibrate again")
        where = f"{self.origin.model_name}: layer {number}"
        rotated, mode = self.file.read(prefix + "rope") if prefix + "rope" in self.file.tensors else (0, 0)
        observed = None if received is None else unpack(received)
        return LayerMoments(mean, unpack(inputs), observed, int(rotated), "neox" if mode else "norm", where)

    def mean_squares(self, weight: str, expert: int | None = None) -> np.ndarray:
        """E[x^2] of each feature that is multiplied with a weight, or with that of an expert, (columns,), float64.

        1 each where no token was routed to the expert.
        """
        counts = self.routed(weight)
        squares = self.file.read(f"{weight}.in_sum2").astype(np.float64).reshape(len(counts), -1)[expert or 0]
        count = counts[expert or 0]
        return squares / count if count else np.ones_like(squares)

    def routed(self, weight: str) -> np.ndarray:
        """How many tokens were multiplied with each of the matrices of a weight, (matrices,), float64.

        Raises SurgeryError for a weight that was not observed.
        """
        if f"{weight}.counts" not in self.file.tensors:
            raise SurgeryError(f"{self.path}: holds no statistics of {weight}; calibrate again")
        return self.file.read(f"{weight}.counts").astype(np.float64)

    def observed(self, number: int, name: str) -> bool:
        """Whether there are moments of an input of a layer."""
        return f"blk.{number}.{name}.count" in self.file.tensors

    def products(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By the name of every weight its inputs' sums of squares, float32 (matrices * columns,), and their counts.

        There is one count, or one for each of the matrices where every input is multiplied with a choice of them.
        """
        names = [name.removesuffix(".in_sum2") for name in self.file.tensors if name.endswith(".in_sum2")]
        return {n: (self.file.read(f"{n}.in_sum2"), self.file.read(f"{n}.counts")) for n in names}


def tokenizer_sha256(model: GGUFModel) -> str:
    """SHA-256, in hex, of everything that a GGUF file says about how to tokenise, except its chat template."""
    entries = (entry for key, entry in model.metadata.items() if key.startswith("tokenizer.ggml."))
    return hashlib.sha256(b"".join(entry.raw for entry in entries)).hexdigest()


def write_calibration(
    path: Path, source: CalibrationOrigin, sums: MomentSums, *, rope: str, text: str, force: bool
) -> None:
    """Write a statistics file with the `text` that was decoded.

    Sums over fewer chunks than `source` says are kept in full precision, to be resumed.
    """
    arrays = {
        f"blk.{layer}.{name}.{what}": values
        for layer, inputs in sums.inputs.items()
        for name, of in inputs.items()
        for what, values in of.items()
    }
    for name, (squares, counts) in sums.products.items():
        arrays[f"{name}.in_sum2"], arrays[f"{name}.counts"] = squares, counts
    dtype = np.float32 if sums.chunks == source.chunk_count else np.float64
    facts = {
        "general.type": KIND,
        "calibration.version": FORMAT_VERSION,
        "calibration.chunks_done": sums.chunks,
        "calibration.rope": rope,
        **{f"calibration.{key}": value for key, value in asdict(source).items()},
        COVERED_TEXT: text,
    }
    metadata = [metadata_entry(key, value) for key, value in facts.items()]
    _write(path, metadata, Arrays(arrays, lambda name: np.ascontiguousarray(arrays[name], dtype)), force=force)


def add_sensitivities(calibration: Calibration, values: Mapping[str, list[float]]) -> None:
    """Write the statistics file anew with the nats that errors of each role cost, by layer."""
    file = calibration.file
    metadata = [entry for key, entry in file.metadata.items() if key != CHECKSUM]
    metadata += [metadata_entry(f"{SENSITIVITY}.{role}", nats) for role, nats in values.items()]
    _write(calibration.path, metadata, Arrays(file.tensors, file.read), force=True)


def copy_calibration(calibration: Calibration, output: Path, *, force: bool, sources: tuple[Path, ...]) -> None:
    """Write the statistics to `output`, their text by the name that it has now: a cached file may have another.

    Raises UsageError for an output that cannot be.
    """
    file, name = calibration.file, "calibration.text_name"
    named = metadata_entry(name, calibration.origin.text_name)
    metadata = [named if key == name else entry for key, entry in file.metadata.items() if key != CHECKSUM]
    _write(output, metadata, Arrays(file.tensors, file.read), force=force, sources=sources)


def _write(
    path: Path,
    metadata: list[MetadataEntry],
    arrays: Mapping[str, np.ndarray],
    *,
    force: bool,
    sources: tuple[Path, ...] = (),
) -> None:
    checksum = metadata_entry(CHECKSUM, _checksum(metadata, arrays))
    kinds = {np.dtype(np.float32): GGMLQuantizationType.F32, np.dtype(np.float64): GGMLQuantizationType.F64}
    declarations = [TensorDeclaration(name, values.shape, kinds[values.dtype]) for name, values in arrays.items()]
    with create_gguf(
        path, [*metadata, checksum], declarations, alignment=DEFAULT_ALIGNMENT, force=force, sources=sources
    ) as writer:
        for name, values in arrays.items():
            writer.put(name, values.view(np.uint8))


def open_calibration(path: Path) -> Calibration:
    """Open a statistics file and check that it is whole. Raises SurgeryError when it is damaged or something else."""
    calibration, done = _open(path)
    if done != calibration.origin.chunk_count:
        raise SurgeryError(
            f"{path}: covers {done} of {calibration.origin.chunk_count} chunks; run surgery calibrate again to go on"
        )
    return calibration


def resume_sums(path: Path, source: CalibrationOrigin) -> MomentSums:
    """The sums of an unfinished run over `source`; empty ones if they are of something else, or damaged."""
    try:
        calibration, done = _open(path)
    except SurgeryError:
        return MomentSums()
    found = calibration.origin
    if replace(found, chunk_count=source.chunk_count) != source or done >= found.chunk_count:
        return MomentSums()
    return read_sums(calibration, done)


def read_sums(calibration: Calibration, chunks: int) -> MomentSums:
    """The sums over the `chunks` chunks that a statistics file holds, in the precision in which they were kept."""
    file = calibration.file
    dtype = np.float32 if chunks == calibration.origin.chunk_count else np.float64
    sums = MomentSums(chunks)
    for name in file.tensors:
        values = file.read_raw(name).view(dtype).astype(np.float64)
        if name.endswith(".in_sum2"):
            weight = name.removesuffix(".in_sum2")
            sums.products[weight] = values, file.read_raw(f"{weight}.counts").view(dtype).astype(np.float64)
        elif not name.endswith(".counts"):
            _, layer, name, what = name.split(".")
            sums.inputs.setdefault(int(layer), {}).setdefault(name, {})[what] = values
    return sums


def calibration_facts(calibration: Calibration | None) -> dict[str, Any]:
    """What an operated model says about its calibration: the text's name, hash and sketch, and how much was used."""
    if calibration is None:
        return {}
    source = calibration.origin
    facts: dict[str, Any] = {
        "text": source.text_name,
        "text_sha256": source.text_sha256,
        "chunks": source.chunk_count,
        "chunk_size": source.chunk_size,
        "revision": source.revision,
    }
    sketch = calibration.sketch
    return facts | ({"sketch": sketch} if sketch else {})


def require_fit(calibration: Calibration, model: GGUFModel, roles: Collection[str] = QKV) -> None:
    """Raise UsageError unless the statistics were taken from this very model, of all these `roles`."""
    source = calibration.origin
    if source.tokenizer_sha256 != tokenizer_sha256(model):
        reason = "has another tokenizer"
    elif source.model_sha256 != model.sha256():
        reason = "is another file (SHA-256 differs)"
    elif missing := [role for role in TARGETS if role in roles and role not in calibration.roles]:
        raise UsageError.of(
            "calibration", calibration.path,
            f"says nothing of {', '.join(missing)}; make it with surgery calibrate and `targets=all`",
        )  # fmt: skip
    else:
        return
    raise UsageError.of(
        "calibration",
        calibration.path,
        f"was taken from {source.model_name}, and {model.path} {reason}; run surgery calibrate on"
        f" {model.name}, or name a text",
    )


def _open(path: Path) -> tuple[Calibration, int]:
    file = open_gguf(path)
    if file.get("general.type") != KIND:
        raise SurgeryError(f"{path}: not calibration statistics; make them with surgery calibrate")
    if file.get("calibration.version") != FORMAT_VERSION:
        raise SurgeryError(
            f"{path}: has version {file.get('calibration.version')} of the format, {FORMAT_VERSION} is read; calibrate again"
        )
    metadata = [entry for key, entry in file.metadata.items() if key != CHECKSUM]
    if file.get(CHECKSUM) != _checksum(metadata, Arrays(file.tensors, file.read_raw)):
        raise SurgeryError(f"{path}: was edited or damaged, its checksum does not fit; calibrate again")
    source = CalibrationOrigin(
        **{
            f.name: file.get(f"calibration.{f.name}", "" if f.default is MISSING else f.default)
            for f in fields(CalibrationOrigin)
        }
    )
    return Calibration(path, source, file.get("calibration.rope"), file), file.get("calibration.chunks_done")


def _checksum(metadata: list[MetadataEntry], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for entry in metadata:
        digest.update(entry.raw)
    for name, values in arrays.items():
        digest.update(struct.pack("<Q", len(name)) + name.encode(errors=NAME_ERRORS))
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
