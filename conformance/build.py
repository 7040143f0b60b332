"""llama.cpp's programs, built from the sources that the source distribution of the pinned package carries."""

import platform
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from conformance.programs import NAMES

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


def fetch_sources(folder: Path) -> Path:
    """llama.cpp's sources within `folder`, fetched with pip if they are not there yet."""
    unpacked = folder / f"{PACKAGE.replace('-', '_')}-{version(PACKAGE)}"
    if not unpacked.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wanted = f"{PACKAGE}=={version(PACKAGE)}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--no-binary", PACKAGE, "--dest", folder, wanted], check=True)
        partial = folder / "unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(partial, filter="data")
        (partial / unpacked.name).rename(unpacked)
        partial.rmdir()
    return unpacked / "vendor" / "llama.cpp"


def build_programs(folder: Path) -> Path:
    """The folder with NAMES in it, built if need be."""
    sources, build = fetch_sources(folder), folder / "build"
    programs = build / "bin"
    if any(not (programs / name).exists() for name in NAMES):
        cmake = _tool("cmake")
        settings = [f"-D{name}={value}" for name, value in SETTINGS.items()]
        subprocess.run([cmake, "-S", sources, "-B", build, "-G", "Ninja", *settings], check=True)
        subprocess.run([cmake, "--build", build, "--target", *NAMES], check=True)
    return programs


def _tool(name: str) -> str:
    """The program of that name, the virtual environment's before any other."""
    own = Path(sys.executable).parent / (f"{name}.exe" if platform.system() == "Windows" else name)
    return str(own) if own.exists() else name
