"""Any GGUF file: what is written reads back the same, here and with the gguf package, and is copied byte for byte."""

import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.gguf_file.metadata import SCALAR_FORMATS, MetadataEntry, metadata_entry
from pipeline.gguf_file.reader import open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf

KINDS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.I32)
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def numbers_of(code: str) -> st.SearchStrategy[Any]:
    if code == "?":
        return st.booleans()
    if code in "fd":
        return st.floats(width=32 if code == "f" else 64)
    bits = 8 * struct.calcsize("<" + code)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if code.islower() else st.integers(0, 2**bits - 1)


def values() -> st.SearchStrategy[tuple[Any, gguf.GGUFValueType]]:
    """A scalar, a text or an array, and the type that it is written as."""
    kinds = [(kind, numbers_of(code)) for kind, code in SCALAR_FORMATS.items()]
    kinds.append((gguf.GGUFValueType.STRING, st.text(max_size=30)))
    each = [st.tuples(st.one_of(of, st.lists(of, max_size=5)), st.just(kind)) for kind, of in kinds]
    return st.one_of(each)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType]:
    kind = draw(st.sampled_from((*KINDS, Q8_0)))
    shape = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    if kind == Q8_0:
        shape[-1] = 32 * draw(st.integers(0, 3))
    return tuple(shape), kind


names = st.text(min_size=1, max_size=40)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.dictionaries(names.filter(lambda name: not name.startswith(("general.", "split."))), values(), max_size=6),
    st.dictionaries(names, tensors(), max_size=6),
    st.sampled_from((1, 32, 64, 4096)),
)
def test_what_is_written_reads_back(
    entries: dict[str, tuple[Any, gguf.GGUFValueType]],
    declared: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType]],
    alignment: int,
) -> None:
    rng = np.random.default_rng(0)
    metadata = [metadata_entry("general.alignment", alignment), *(metadata_entry(k, *v) for k, v in entries.items())]
    declarations = [TensorDeclaration(name, *of) for name, of in declared.items()]
    with tempfile.TemporaryDirectory() as folder:
        first, copy = Path(folder) / "first.gguf", Path(folder) / "copy.gguf"
        contents = write(first, metadata, declarations, alignment, rng)
        model = open_gguf(first)
        assert list(model.tensors) == [t.name for t in declarations]
        assert all(np.array_equal(model.read_raw(name).ravel(), data) for name, data in contents.items())
        for key, (value, _) in entries.items():
            assert same(model.get(key), value), key
        with create_gguf(copy, model.metadata.values(), declarations, alignment=model.alignment, force=False) as writer:
            for name in reversed(model.tensors):
                writer.copy_from(model, name)
        assert copy.read_bytes() == first.read_bytes()
        if all(all(t.shape) for t in declarations) and alignment % 32 == 0 and declarations:
            theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(first).tensors}
            for name, data in contents.items():
                assert np.array_equal(theirs[name].data.view(np.uint8).ravel(), data)


def write(
    path: Path,
    metadata: list[MetadataEntry],
    declarations: list[TensorDeclaration],
    alignment: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """A file of random bytes; which bytes each tensor has."""
    contents = {}
    with create_gguf(path, metadata, declarations, alignment=alignment, force=False) as writer:
        for tensor in declarations:
            data = rng.integers(0, 256, writer.tensors[tensor.name].nbytes, dtype=np.uint8)
            writer.put(tensor.name, data)
            contents[tensor.name] = data
    return contents


def same(one: Any, other: Any) -> bool:
    """Equal, NaN to NaN."""
    if isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(other, float) and math.isnan(one) and math.isnan(other))
