"""What the running process has used, and what arrays take."""

import platform
import re
import resource
import sys
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux from /proc: what getrusage says there includes the process that started this one.
    """
    if sys.platform == "linux" and (match := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())):
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_name() -> str:
    """The processor and the operating system, such as `Intel Xeon, Linux x86_64`; no host name."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    processor = match[1].strip() if match else platform.processor() or "processor unknown"
    return f"{processor}, {platform.system()} {platform.machine()}"


def array_bytes(value: object) -> int:
    """Bytes of all arrays in memory that `value`, an array, a list or a dataclass, holds: at the most, if some are shared."""
    if isinstance(value, np.memmap):
        return 0
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(map(array_bytes, value))
    return sum(map(array_bytes, vars(value).values())) if is_dataclass(value) else 0
