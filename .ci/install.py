"""pip install with a word every now and then of what it is doing: llama.cpp compiles for minutes, and pip is silent.

Run as `python .ci/install.py ARGUMENTS OF PIP INSTALL`. What pip said is shown only when it fails.
"""

import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable

SECONDS_BETWEEN_LINES = 15
DOING = re.compile(r"\s*(?:Collecting|Building wheel for|Installing collected packages:) *([\w.\[\]-]+)")
COMPILED = re.compile(r"\s*\[\s*(\d+)/(\d+)\] ")  # by ninja, of one package
COMPILED_SHARE = re.compile(r"\s*\[\s*(\d+)%\] Building ")  # by make


def main() -> int:
    """Install; the exit code is pip's."""
    command = [sys.executable, "-m", "pip", "install", "-v", "--progress-bar", "off", "--disable-pip-version-check"]
    process = subprocess.Popen(
        [*command, *sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    started = told = time.monotonic()
    last: deque[str] = deque(maxlen=40)
    doing = "starting"
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            line = ""
        if line is None:
            break
        if line:
            last.append(line)
            doing = described(line, doing)
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            print(f"  {told - started:4.0f} s: {doing}", flush=True)
    code = process.wait()
    if code:
        print("".join(last), file=sys.stderr)
    return code


def described(line: str, before: str) -> str:
    """What pip is doing, by a line that it printed; `before` if the line does not say."""
    package = before.partition(",")[0]
    if match := COMPILED.match(line):
        return f"{package}, compiled {match[1]} of {match[2]} files"
    if match := COMPILED_SHARE.match(line):
        return f"{package}, compiled {match[1]} %"
    if match := DOING.match(line):
        return match[0].strip().replace("Collecting", "fetching").replace("Building wheel for", "building")
    return before


def _read(stream: Iterable[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())
