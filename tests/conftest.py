import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.calibration.calibrate import calibrate
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.models import embedded_model
from pipeline.inputs.texts import read_text
from tests.tiny_model import TinyModel, write_tiny_model

UNWELCOME = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "SURGERY_DEBUG", "MAKEFLAGS")


def pytest_configure(config: pytest.Config) -> None:
    """Of tests that run side by side, each process keeps to processors of its own: llama.cpp's threads wait by spinning."""
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        number, workers = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, processors[number::workers] or processors)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was not tested, and how to have it: a row of dots hides what was skipped."""
    skipped = Counter(
        (Path(report.nodeid.partition("::")[0]).name, str(report.longrepr[2]).removeprefix("Skipped: "))
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple)
    )
    if skipped:
        terminalreporter.section("not tested")
    for (module, reason), count in skipped.items():
        terminalreporter.write_line(f"{module}: {count} test{'s' if count > 1 else ''}: {reason}")


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own, and nothing of the terminal and the settings of whoever runs it."""
    monkeypatch.chdir(tmp_path)
    for name in UNWELCOME:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The embedded real model, SmolLM2-135M-Instruct as Q4_1."""
    return embedded_model()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama in F32 that llama.cpp loads: treat it as read-only."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny`, but with rows that are whole blocks of the K and I quants, 256 wide."""
    model = TinyModel(width=256, key_length=64, value_length=64, feed_forward=256)
    return write_tiny_model(tmp_path_factory.mktemp("wide") / "wide.gguf", model)


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[[TinyModel], Path]:
    return lambda model: write_tiny_model(tmp_path / f"{abs(hash(model))}.gguf", model)


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand tokens of text in a file."""
    path = tmp_path_factory.mktemp("text") / "english.txt"
    words = [
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "that",
        "for",
        "it",
        "as",
        "was",
        "with",
        "be",
        "by",
        "on",
        "not",
        "he",
        "his",
        "but",
        "at",
        "are",
        "this",
        "have",
        "from",
        "or",
        "had",
    ]
    rng = np.random.default_rng(0)
    path.write_text(" ".join(rng.choice(words, 4000)) + "\n")
    return path


@pytest.fixture(scope="session")
def taken(tiny: Path, english: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the tiny model over two chunks: read-only."""
    folder = tmp_path_factory.mktemp("statistics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGERY_CACHE", str(folder))
        return calibrate(open_gguf(tiny), read_text(str(english)), chunks=2).path  # with sensitivities


SurgeryProcess = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def surgery() -> SurgeryProcess:
    """Run the installed console script as a real process."""
    script = shutil.which("surgery", path=str(Path(sys.executable).parent))
    assert script, "the console script is not installed"

    def run(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
        command = [script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test has seen; it is not there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SURGERY_CACHE", str(folder))
    return folder
