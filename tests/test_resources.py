"""Peak memory is this process's own, not that of the one which started it."""

import subprocess
import sys

import numpy as np

SCRIPT = """
import numpy
from pipeline.resources import peak_rss_bytes
before = peak_rss_bytes()
numpy.ones(2**25)
print(before, peak_rss_bytes())
"""


def test_peak_memory() -> None:
    ballast = np.ones(2**26)  # 512 MiB that the new process must not count
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before, after = map(int, output.split())
    assert before < 100 * 2**20 < ballast.nbytes
    assert 250 * 2**20 < after - before < 300 * 2**20
