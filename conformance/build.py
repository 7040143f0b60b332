"""llama.cpp's programs, built from the sources that the source distribution of the pinned package carries."""

import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from conformance.programs import NAMES
from native.model import default_threads
from pipeline.cli.output import echo
from pipeline.cli.progress_report import ProgressReport

PACKAGE = "llama-cpp-python"
SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",  # what is measured is numbers; -O3 takes three times as long to compile
    "CMAKE_C_FLAGS_RELEASE": "-O3 -DNDEBUG",
    "LLAMA_BUILD_TESTS": "ON",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "GGML_OPENMP": "OFF",
}


def default_folder() -> Path:
    """Beside the virtual environment: what is fetched and built there outlives neither it nor the pinned version."""
    return Path(f"{sys.prefix}-conformance") / version(PACKAGE)


class UnavailableError(Exception):
    """llama.cpp's sources or programs cannot be had on this machine, which is no fault of Surgery's."""


def fetch_sources(folder: Path) -> Path:
    """llama.cpp's sources within `folder`, fetched with pip if they are not there yet. Raises UnavailableError."""
    unpacked = folder / f"{PACKAGE.replace('-', '_')}-{version(PACKAGE)}"
    if not unpacked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{PACKAGE}=={version(PACKAGE)}"
        echo(f"fetching llama.cpp's sources, which {wanted} carries: 70 MB", err=True)
        pip = [sys.executable, "-m", "pip", "download", "--retries", "1", "--timeout", "30", "--no-deps"]
        _run([*pip, "--no-binary", PACKAGE, "--dest", folder, wanted], "pip cannot fetch them")
        partial = folder / "unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        package = next(folder.glob("*.tar.gz"))
        with tarfile.open(package) as archive:
            archive.extractall(partial, filter="data")
        (partial / unpacked.name).rename(unpacked)
        partial.rmdir()
        package.unlink()
    return unpacked / "vendor" / "llama.cpp"


def build_programs(folder: Path) -> Path:
    """The folder with NAMES in it, built if need be. Raises UnavailableError."""
    build = folder / "build"
    programs = build / "bin"
    if any(not (programs / name).exists() for name in NAMES):
        sources, cmake = fetch_sources(folder), _tool("cmake")
        settings = [f"-D{name}={value}" for name, value in SETTINGS.items()]
        _run([cmake, "-S", sources, "-B", build, "-G", "Ninja", *settings], "cmake cannot configure them")
        with ProgressReport("building llama.cpp's programs", unit="files") as bar:
            jobs = str(default_threads())  # ninja's own two more take memory that a small machine lacks
            _run([cmake, "--build", build, "--parallel", jobs, "--target", *NAMES], "they do not compile", bar)
    return programs


def _run(command: Sequence[str | Path], failure: str, bar: ProgressReport | None = None) -> None:
    """Run a command quietly, its output kept for when it fails; `bar` follows the [done/total] that ninja prints."""
    said: deque[str] = deque(maxlen=200)
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.strip())
                if bar and (counted := re.match(r"\[(\d+)/(\d+)\]", line)):
                    bar.update(int(counted[1]), int(counted[2]))
    except OSError as error:
        raise UnavailableError(f"{failure}: {command[0]}: {error.strerror}") from None
    if process.returncode:
        errors = [line for line in said if re.search(r"\berror\b", line, re.IGNORECASE)]
        raise UnavailableError(f"{failure}: {(errors or [line for line in said if line] or ['no word'])[-1]}")


def _tool(name: str) -> str:
    """The program of that name, the virtual environment's before any other."""
    own = Path(sys.executable).parent / (f"{name}.exe" if platform.system() == "Windows" else name)
    return str(own) if own.exists() else name
