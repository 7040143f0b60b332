"""Peak memory is this process's own, not that of the one which started it."""

import subprocess
import sys

import numpy as np

from pipeline.resources import peak_rss_bytes


def test_peak_memory() -> None:
    before = peak_rss_bytes()
    ballast = np.ones(2**25)  # 256 MiB
    assert peak_rss_bytes() >= before + 200 * 2**20
    command = [sys.executable, "-c", "from pipeline.resources import peak_rss_bytes; print(peak_rss_bytes())"]
    child = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert child < 100 * 2**20 < ballast.nbytes
