"""What is compared once rather than for each architecture: vocabularies, split files, and the converter."""

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np

from conformance.build import build_programs, fetch_sources
from conformance.models import make_models
from conformance.outcome import Outcome, WrongError
from conformance.programs import ProgramError, Programs
from native.errors import NativeError
from native.library import initialise
from native.model import Model
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan

SEPARATOR = "\n__ggml_vocab_test__\n"  # between the texts of llama.cpp's *.gguf.inp


def _vocabularies(folder: Path) -> str:
    """Every text that llama.cpp's sources hold with its token ids gives these ids."""
    vocabularies = sorted((fetch_sources(folder) / "models").glob("ggml-vocab-*.gguf.inp"))
    count = 0
    for inputs in vocabularies:
        path = inputs.with_suffix("")
        texts = inputs.read_bytes().decode().split(SEPARATOR)
        expected = [[int(number) for number in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        initialise()
        pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        model = Model(str(path), pointer, llama_cpp.llama_model_get_vocab(pointer), False)
        try:
            for text, ids in zip(texts, expected, strict=False):
                _compare_tokens(model, text, ids)
                count += 1
        finally:
            llama_cpp.llama_model_free(ctypes.c_void_p(pointer))
    return f"{count} texts of {len(vocabularies)} vocabularies"


def _compare_tokens(model: Model, text: str, ids: list[int]) -> None:
    """The ids are those without the tokens that a vocabulary adds at the ends."""
    found = model.tokenize(text, special=False).tolist()
    added = len(found) - len(ids)
    if not any(found[start : start + len(ids)] == ids for start in (0, 1) if 0 <= added - start <= 1):
        raise WrongError(f"{Path(model.path).name}: {text!r} gives {found}, not {ids}")


def _split_files(folder: Path) -> str:
    """A model in parts, split by llama-gguf-split, gives what the whole one gives."""
    programs = Programs(build_programs(folder))
    whole = next(path for path in make_models(programs, folder) if path.stem == "llama-dense")
    with tempfile.TemporaryDirectory() as scratch:
        prefix = Path(scratch) / "split"
        programs.run("llama-gguf-split", "--split", "--split-max-tensors", 6, whole, prefix)
        parts = sorted(Path(scratch).glob("split-*.gguf"))
        outputs = [Path(scratch) / f"{name}.gguf" for name in ("whole", "parts")]
        for source, output in zip((whole, parts[0]), outputs, strict=True):
            operate(open_gguf(source), output, Plan(threshold=0.5), threads=1)
        one, other = map(open_gguf, outputs)
        for key in one.metadata.keys() | other.metadata.keys():
            if not key.startswith("surgery.source") and one.get(key) != other.get(key):
                raise WrongError(f"{key} differs when the model is in {len(parts)} parts")
        for tensor in one.tensors.keys() | other.tensors.keys():
            if not np.array_equal(one.read_raw(tensor), other.read_raw(tensor)):
                raise WrongError(f"{tensor} differs when the model is in {len(parts)} parts")
    return f"a model in {len(parts)} parts"


def _converter(folder: Path) -> str:
    from conformance.converter import check_converter  # torch and transformers, seconds

    return check_converter(fetch_sources(folder))


OTHERS: dict[str, Callable[[Path], str]] = {
    "vocabularies": _vocabularies,
    "split files": _split_files,
    "converter": _converter,
}


def check_other(name: str, folder: Path) -> Outcome:
    """The outcome of one of OTHERS, with the programs and models that `folder` holds."""
    try:
        return Outcome("works", OTHERS[name](folder))
    except (WrongError, ProgramError, NativeError, SurgeryError) as error:
        return Outcome("wrong", str(error))
