"""Which llama.cpp this is: its version, and the instructions that it was built for."""

import re
from functools import cache

import llama_cpp

from native.library import initialise

LLAMA_CPP_VERSION = str(llama_cpp.__version__)
"""The version of llama-cpp-python, which builds llama.cpp from its own sources."""


def uses_gpu() -> bool:
    """Whether layers can be put on a GPU."""
    initialise()
    return bool(llama_cpp.llama_supports_gpu_offload())


@cache
def instruction_set() -> str:
    """What llama.cpp says that it computes with, such as `SSE3 SSSE3 AVX AVX2 F16C FMA LLAMAFILE OPENMP REPACK`."""
    initialise()
    return " ".join(re.findall(r"(\w+) = 1\b", (llama_cpp.llama_print_system_info() or b"").decode()))
