"""Read mutated files until the time is up: every answer is a result or an error of ours, soon and in little memory.

`python -m fuzz gguf --seconds 60`; the same seed makes the same mutants, and `--only NUMBER` one of them alone.
"""

import argparse
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from types import FrameType

from fuzz.targets import TARGETS, Target, run_one

MOST_SECONDS = 5.0  # that one mutant may take
MOST_MEMORY = 2**30  # bytes beyond those of the start
MOST_FINDINGS = 20


class TookTooLongError(BaseException):
    """Not an Exception: nothing that is fuzzed may catch it."""


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code is 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"any of {', '.join(TARGETS)}; all of them")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (60)")
    parser.add_argument("--mutants", type=int, default=10**9, help="at the most, of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this mutant alone, with its traceback")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="save what was found there")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no target {min(unknown)}; choose of {', '.join(TARGETS)}")
    limit_memory()
    chosen, found = options.targets or list(TARGETS), 0
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            target = TARGETS[name](Path(folder))
            if options.only is not None:
                found += attempt(target, name, options.seed, options.only, Path(folder), options.keep, whole=True)
            else:
                found += search(target, name, options, options.seconds / len(chosen), Path(folder))
    return 1 if found else 0


def search(target: Target, name: str, options: argparse.Namespace, seconds: float, folder: Path) -> int:
    """Try mutants for so long; how many are findings."""
    started, found, number, slowest = time.monotonic(), 0, 0, 0.0
    while number < options.mutants and time.monotonic() - started < seconds and found < MOST_FINDINGS:
        before = time.monotonic()
        found += attempt(target, name, options.seed, number, folder, options.keep)
        slowest = max(slowest, time.monotonic() - before)
        number += 1
    took = time.monotonic() - started
    print(f"{name}: {number:,} mutants in {took:.0f} s, the slowest {slowest:.1f} s; {found} findings", flush=True)
    return found


def attempt(
    target: Target, name: str, seed: int, number: int, folder: Path, keep: Path | None, *, whole: bool = False
) -> bool:
    """Whether mutant `number` is a finding: an exception that is not ours, or too much time or memory."""
    data = target.make(Random(f"{name} {seed} {number}"))
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        run_one(target, folder / "mutant.gguf", data)
    except (Exception, TookTooLongError) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        print(
            f"{name} --seed {seed} --only {number}: {type(error).__name__} at {place}: {str(error)[:200]}", flush=True
        )
        if whole:
            traceback.print_exc()
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{seed}-{number}").write_bytes(data)
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


def limit_memory() -> None:
    """Make what takes more than MOST_MEMORY a MemoryError, where the system tells and keeps to such a limit (Linux)."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TookTooLongError(f"more than {MOST_SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
