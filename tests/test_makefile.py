"""make's own part: what may be set, and what is told of compiling."""

import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.compare.grid import PRESETS, Grid

ROOT = Path(__file__).parent.parent


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("gmake") or shutil.which("make")
    if program is None:
        pytest.skip("needs make")
    command = [program, "--dry-run", "--no-print-directory", "-C", str(ROOT), f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_settings_reach_the_commands() -> None:
    shown = make("gguf", "THRESHOLD=0.3", "THREADS=1").stdout
    assert '--threshold "0.3"' in shown
    assert '--threads "1"' in shown
    assert '--max-tokens "7"' in make("run", "MAX_TOKENS=7").stdout


def test_compare_is_told_only_what_was_set_since_it_refuses_what_is_idle() -> None:
    shown = make("compare", "METHODS=none").stdout
    assert '--methods "none"' in shown
    assert "--thresholds" not in shown
    defaults = dict(re.findall(r"^([A-Z]+) \?= (.*)$", (ROOT / "Makefile").read_text(), re.M))
    (quick,) = PRESETS["quick"]
    quick = replace(quick, methods=Grid.methods)  # as without --preset
    for name in ("METHODS", "THRESHOLDS", "QUANTS"):
        assert defaults[name].split() == [str(choice) for choice in getattr(quick, name.lower())]
    single = quick.metrics, quick.targets, quick.means
    assert single == tuple((defaults[name],) for name in ("METRIC", "TARGETS", "MEAN"))


@pytest.mark.parametrize(("setting", "meant"), [("TRESHOLD=0.3", "; did you mean THRESHOLD?"), ("xyz=1", "")])
def test_a_setting_that_there_is_not_is_refused(setting: str, meant: str) -> None:
    refused = make("gguf", setting)
    assert refused.returncode == 2
    assert f"{setting.partition('=')[0]}: no such setting{meant}; make help" in refused.stderr


def test_what_pip_does_is_told_from_what_it_prints() -> None:
    described = runpy.run_path(str(ROOT / ".ci" / "install.py"))["described"]
    doing = "starting"
    told = []
    for line in (
        "Collecting llama-cpp-python==0.3.36", "  Downloading x.tar.gz (40 MB)",
        "Building wheel for llama-cpp-python (pyproject.toml): started", "  [12/180] Building CXX object a.o",
        "  [ 55%] Building C object b.o", "Installing collected packages: numpy, click",
    ):  # fmt: skip
        doing = described(line, doing)
        told.append(doing)
    assert told == [
        "fetching llama-cpp-python", "fetching llama-cpp-python", "building llama-cpp-python",
        "building llama-cpp-python, compiled 12 of 180 files", "building llama-cpp-python, compiled 55 %",
        "Installing collected packages: numpy",
    ]  # fmt: skip
