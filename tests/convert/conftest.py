"""Tiny checkpoints and what they convert to, made once a session, without network."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from tests.convert.checkpoints import make_checkpoint
from tests.convert.real_model import save_real_tokenizer

MakeFolder = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Gives the folder of a checkpoint of CHECKPOINTS, in float32. Do not change what is in it."""

    @cache
    def make(name: str) -> Path:
        return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / name, name)

    return make


@pytest.fixture(scope="session")
def converted(checkpoint: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Gives the GGUF file of a checkpoint of CHECKPOINTS, in F32."""

    @cache
    def make(name: str) -> Path:
        output = tmp_path_factory.mktemp("gguf") / f"{name}.gguf"
        write_model(open_checkpoint(checkpoint(name)), output)
        return output

    return make


@pytest.fixture(scope="session")
def real_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's real tokenizer, as the hub has it."""
    folder = tmp_path_factory.mktemp("smollm2")
    save_real_tokenizer(folder)
    return folder
