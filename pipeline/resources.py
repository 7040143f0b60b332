"""What the running process has used."""

import re
import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux from /proc: what getrusage says there includes the process that started this one.
    """
    if sys.platform == "linux" and (match := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())):
        return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
