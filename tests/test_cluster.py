"""Cells on a real local Dask cluster of two worker processes, one of which is killed in the middle."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from dask.distributed import LocalCluster

from pipeline.compare.cluster import ClusterRunner
from pipeline.compare.grid import Grid, grid_cells
from pipeline.compare.results import study_results
from pipeline.compare.run import StudyProgress, run_study
from pipeline.compare.study import StudySettings, open_study
from pipeline.errors import UsageError
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import read_text

CELLS = grid_cells([Grid(methods=("shared-kv",), thresholds=(0.9, 0.7, 0.5), quants=("source", "Q8_0"))])


@pytest.fixture
def cluster() -> Iterator[Any]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


def test_a_worker_that_dies_costs_only_its_cell(cluster: Any, tiny: Path, english: Path, tmp_path: Path) -> None:
    settings = StudySettings((read_text(str(english)),), chunks=20, n_ctx=64, answer_tokens=4)
    killed: list[int] = []

    def kill_one(progress: StudyProgress) -> None:
        if progress.cells_done == 1 and not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    with open_study(tmp_path / "far", open_gguf(tiny), settings) as study:
        progress = run_study(study, CELLS, kill_one, ClusterRunner(cluster.scheduler_address))
    assert killed
    assert not progress.failures
    with open_study(tmp_path / "near", open_gguf(tiny), settings) as study:
        run_study(study, CELLS, lambda progress: None)
    far, near = (study_results(tmp_path / name).cells for name in ("far", "near"))
    assert [cell.status for cell in far] == ["done"] * 7
    assert [(cell.label, cell.kld_mean) for cell in far] == [(cell.label, cell.kld_mean) for cell in near]


def test_no_scheduler_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.compare.cluster.SECONDS_TO_CONNECT", 1)
    silent = socket.create_server(("127.0.0.1", 0))  # something listens, but says nothing
    with silent, pytest.raises(UsageError, match="no Dask scheduler answers there"):
        ClusterRunner(f"tcp://127.0.0.1:{silent.getsockname()[1]}")


def test_no_scheduler_there_that_encrypts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.compare.cluster.SECONDS_TO_CONNECT", 1)
    monkeypatch.chdir(tmp_path)
    files = {"ca-file": "cert.pem", "client.cert": "cert.pem", "client.key": "key.pem"}
    tls = {f"distributed.comm.tls.{name}": file for name, file in files.items()}
    silent = socket.create_server(("127.0.0.1", 0))
    address = f"tls://127.0.0.1:{silent.getsockname()[1]}"
    with silent:
        with pytest.raises(UsageError, match=r"needs certificates; name them as distributed\.comm\.tls\.ca-file"):
            ClusterRunner(address)
        with dask.config.set(tls):
            with pytest.raises(UsageError, match=r"cannot read what .* name \(No such file"):
                ClusterRunner(address)
            if not shutil.which("openssl"):
                pytest.skip("needs openssl")
            made = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=localhost"
            subprocess.run(made.split(), check=True, capture_output=True)
            with pytest.raises(UsageError, match="no Dask scheduler answers there"):
                ClusterRunner(address)
