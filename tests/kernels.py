"""The numerical tests under each kernel of OpenBLAS that this processor can do, and with one thread: make test-kernels.

OpenBLAS chooses its kernels by the processor, and each adds up in an order of its own; so what holds on one machine
need not hold on the next. OPENBLAS_CORETYPE makes it take another machine's, as long as the processor knows the
instructions. Another library (Accelerate on macOS) has no such choice: there only the number of threads changes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from threadpoolctl import threadpool_info

KERNELS = {  # and the processor's flag that each needs
    "Nehalem": "sse4_2", "Sandybridge": "avx", "Haswell": "avx2", "Zen": "avx2", "SkylakeX": "avx512bw",
    "ARMV8": "asimd", "NEOVERSEN1": "asimddp",
}  # fmt: skip
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> int:
    """Run them all; the exit code is 1 if any failed."""
    runs = {kernel: {"OPENBLAS_CORETYPE": kernel} for kernel in possible_kernels()} | {"one thread": ONE_THREAD}
    failed = []
    for name, settings in runs.items():
        print(f"numerical tests: {name}", flush=True)
        command = [sys.executable, "-m", "pytest", "-m", "numerical", *(sys.argv[1:] or marked_modules())]
        if subprocess.run(command, env=os.environ | settings).returncode:
            failed.append(name)
    print(
        f"numerical tests failed with {', '.join(failed)}" if failed else f"numerical tests: {', '.join(runs)}: passed"
    )
    return 1 if failed else 0


def marked_modules() -> list[str]:
    """The modules that have numerical tests: to collect all the others takes as long as to run some of these."""
    folder = Path(__file__).parent
    modules = sorted(folder.rglob("test_*.py"))
    return [str(module) for module in modules if "pytest.mark.numerical" in module.read_text()]


def possible_kernels() -> list[str]:
    """The kernels that the processor has the instructions for; none where NumPy does not compute with OpenBLAS."""
    import numpy  # noqa: F401  # loads its library

    info = Path("/proc/cpuinfo")
    if not info.exists() or not any(library["internal_api"] == "openblas" for library in threadpool_info()):
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.MULTILINE)
    flags = found[1].split() if found else []
    return [kernel for kernel, flag in KERNELS.items() if flag in flags]


if __name__ == "__main__":
    sys.exit(main())
