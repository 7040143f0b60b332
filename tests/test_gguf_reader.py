"""Reading GGUF: the same as gguf's own reader, and a clear error for every way in which a header can lie."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from pipeline.errors import SurgeryError
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import GGUFModel, open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from tests.tiny_model import TinyModel


def test_reads_what_ggufs_own_reader_reads(embedded: Path) -> None:
    model, reference = open_gguf(embedded), gguf.GGUFReader(embedded)
    keys = [key for key in reference.fields if not key.startswith("GGUF.")]
    assert list(model.metadata) == keys
    for key in keys:
        assert model.get(key) == reference.fields[key].contents(), key
    assert len(model.tensors) == len(reference.tensors) == 272
    for mine, theirs in zip(model.tensors.values(), reference.tensors, strict=True):
        assert (mine.name, mine.shape, mine.type) == (
            theirs.name,
            tuple(reversed(theirs.shape.tolist())),
            theirs.tensor_type,
        )
        assert (mine.offset, mine.nbytes) == (theirs.data_offset, theirs.n_bytes)
    name = "blk.7.attn_k.weight"
    theirs = next(tensor for tensor in reference.tensors if tensor.name == name)
    assert np.array_equal(model.read_raw(name), theirs.data)
    assert np.array_equal(model.read(name), gguf.dequantize(theirs.data, theirs.tensor_type))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_reads_every_type_that_gguf_writes(make_tiny: Callable[[TinyModel], Path], kind: str) -> None:
    exact = open_gguf(make_tiny(TinyModel())).read("blk.1.attn_q.weight")
    stored = open_gguf(make_tiny(TinyModel(type=gguf.GGMLQuantizationType[kind]))).read("blk.1.attn_q.weight")
    assert stored.dtype == np.float32
    assert np.linalg.norm(stored - exact) <= {"F32": 0, "F16": 1e-3, "BF16": 1e-2}.get(kind, 0.1) * np.linalg.norm(
        exact
    )


def write_parts(whole: GGUFModel, folder: Path) -> list[Path]:
    """`whole` as two parts, as llama.cpp's gguf-split writes them."""
    names = list(whole.tensors)
    parts = [folder / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    for number, (part, mine) in enumerate(zip(parts, (names[:9], names[9:]), strict=True)):
        numbers = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        split = [metadata_entry(key, value) for key, value in numbers.items()]
        metadata = [*(whole.metadata.values() if number == 0 else []), *split]
        tensors = [TensorDeclaration(n, whole.tensors[n].shape, whole.tensors[n].type) for n in mine]
        with create_gguf(part, metadata, tensors, alignment=32, force=False) as writer:
            for name in mine:
                writer.copy(whole.tensors[name])
    return parts


def test_reads_a_split_model_as_one(tiny: Path, tmp_path: Path) -> None:
    whole = open_gguf(tiny)
    names, parts = list(whole.tensors), write_parts(whole, tmp_path)
    joined = open_gguf(parts[0])
    assert list(joined.tensors) == names
    assert list(joined.metadata) == list(whole.metadata)
    assert all(np.array_equal(joined.read_raw(name), whole.read_raw(name)) for name in names)
    with pytest.raises(SurgeryError, match="name the first part"):
        open_gguf(parts[1])
    parts[1].unlink()
    with pytest.raises(SurgeryError, match="1 of 2 parts are missing, the first is m-00002-of-00002"):
        open_gguf(parts[0])


def test_parts_that_are_not_where_their_names_say(tiny: Path, tmp_path: Path) -> None:
    first, second = write_parts(open_gguf(tiny), tmp_path)
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    alone = Path(shutil.copy(first, tmp_path / "alone.gguf"))
    for path in (joined, alone):
        with pytest.raises(SurgeryError, match=r"says that it is part 1 of 2, where part 1 of 1 was expected; .*anew"):
            open_gguf(path)
    twice = Path(shutil.copy(first, tmp_path / "n-00001-of-00002.gguf"))
    shutil.copy(first, tmp_path / "n-00002-of-00002.gguf")
    with pytest.raises(SurgeryError, match=r"n-00002-of-00002.gguf: says that it is part 1 of 2, where part 2 of 2"):
        open_gguf(twice)
    whole = Path(shutil.copy(tiny, tmp_path / "w-00001-of-00001.gguf"))
    assert open_gguf(whole).tensors
    for number in (1, 2):
        shutil.copy(tiny, tmp_path / f"w-0000{number}-of-00002.gguf")
    with pytest.raises(
        SurgeryError, match=r"w-00001-of-00002.gguf: named as part 1 of 2, but it says that it is whole"
    ):
        open_gguf(tmp_path / "w-00001-of-00002.gguf")


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    missing, empty, text = tmp_path / "missing.gguf", tmp_path / "empty.gguf", tmp_path / "text.gguf"
    empty.touch()
    text.write_text("This is not a model, whatever its name says.")
    program = tmp_path / "program.gguf"
    program.write_bytes(b"\x7fELF" + bytes(30))
    for path, message in (
        (missing, "no such file"),
        (empty, "only 0 bytes"),
        (text, r'not a GGUF file \(it starts with "This"\)'),
        (program, r"not a GGUF file \(it starts with the bytes 7f 45 4c 46\)"),
        (tmp_path, "not a file"),
    ):
        with pytest.raises(SurgeryError, match=message):
            open_gguf(path)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9999])
def test_refuses_a_truncated_file(embedded: Path, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.gguf"
    shutil.copy(embedded, cut)
    with cut.open("r+b") as file:
        file.truncate(int(embedded.stat().st_size * share))
    with pytest.raises(SurgeryError, match="truncated"):
        open_gguf(cut)


def header(*, version: int = 3, tensors: int = 0, entries: int = 0, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + body


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 2**62
LIES = {
    "huge tensor count": (header(tensors=HUGE), "more than the file can hold"),
    "huge entry count": (header(entries=HUGE), "more than the file can hold"),
    "version 1": (header(version=1), "version 1 is not supported"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "huge string": (header(entries=1, body=struct.pack("<Q", HUGE)), "past the end"),
    "huge array of numbers": (header(entries=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, HUGE)), "past the end"),
    "huge array of strings": (header(entries=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, HUGE)), "past the end"),
    "long string in an array": (
        header(entries=1, body=text(b"k") + struct.pack("<IIQQ", 9, 8, 1, HUGE)),
        "past the end",
    ),
    "arrays in arrays": (
        header(entries=1, body=text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 40),
        "nested",
    ),
    "unknown value type": (header(entries=1, body=text(b"k") + struct.pack("<I", 77)), "value type 77"),
    "key twice": (header(entries=2, body=(text(b"k") + struct.pack("<IB", 0, 1)) * 2), "'k' appears twice"),
    "odd alignment": (header(entries=1, body=text(b"general.alignment") + struct.pack("<II", 4, 24)), "alignment 24"),
    "zero alignment": (header(entries=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0)), "alignment 0"),
    "no dimensions": (header(tensors=1, body=tensor(shape=())), "0 dimensions"),
    "five dimensions": (header(tensors=1, body=tensor(shape=(1,) * 5)), "5 dimensions"),
    "empty tensor that is large": (header(tensors=1, body=tensor(shape=(2**30, 0))), "impossible shape"),
    "width that is no block": (header(tensors=1, body=tensor(shape=(33, 2), kind=8)), "impossible shape"),
    "unknown tensor type": (header(tensors=1, body=tensor(kind=4)), "type 4"),
    "offset past the end": (header(tensors=1, body=tensor(offset=HUGE)), "is said to be at"),
    "dimension that no model has": (header(tensors=1, body=tensor(shape=(2**40, 2))), "impossible shape"),
    "shape past the end": (header(tensors=1, body=tensor(shape=(2**30, 2**30))), "truncated"),
    "tensor twice": (
        header(tensors=2, body=tensor(shape=(32, 1)) + tensor(shape=(32, 1), offset=128)),
        "appears twice",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_refuses_a_lying_header(tmp_path: Path, lie: str) -> None:
    data, message = LIES[lie]
    path = tmp_path / "lie.gguf"
    path.write_bytes(data + bytes(256))
    with pytest.raises(SurgeryError, match=message) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)


def test_refuses_a_tensor_with_nan(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(tiny, broken)
    info = open_gguf(broken).tensors["blk.1.attn_k.weight"]
    with broken.open("r+b") as file:
        file.seek(info.offset + 400)
        file.write(struct.pack("<f", float("nan")))
    with pytest.raises(SurgeryError, match=r"tensor blk\.1\.attn_k\.weight holds NaN"):
        open_gguf(broken).read(info.name)


def test_a_tensor_may_hold_nothing_and_be_called_anything(tmp_path: Path) -> None:
    name = b"a\xff[/b].weight"
    empty = [tensor(shape=(32, 0), name=b"e"), tensor(shape=(0,), name=b"f"), tensor(shape=(0,), name=b"q", kind=8)]
    path = tmp_path / "m.gguf"
    start = header(tensors=4, body=b"".join(empty) + tensor(shape=(8,), name=name))
    path.write_bytes(start + bytes(-len(start) % 32) + bytes(range(32)))
    model = open_gguf(path)
    assert [model.read(t).shape for t in model.tensors] == [(0, 32), (0,), (0,), (8,)]
    assert model.read_raw("e").shape == (0, 128)
    declared = [TensorDeclaration(t.name, t.shape, t.type) for t in model.tensors.values()]
    with create_gguf(tmp_path / "copy.gguf", model.metadata.values(), declared, alignment=32, force=False) as writer:
        for t in declared:
            writer.copy_from(model, t.name)
    assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()
