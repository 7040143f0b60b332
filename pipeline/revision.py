"""Which code a number comes from: a revision of each algorithm, taken from its source; and what it ran on.

A revision is a hash over the statements of the modules that decide what an algorithm computes. Nobody has to remember
to bump it: what changes a computation changes its revision, and what was measured before is measured again. It stays
where only comments, docstrings, annotations, messages of errors, imports or the place of a function change.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from native.build import LLAMA_CPP_VERSION, instruction_set
from native.model import default_threads
from pipeline import __version__
from pipeline.resources import machine_name

ROOT = Path(__file__).parent.parent
DECOMPOSING = (
    "pipeline/decompose", "pipeline/attention.py", "pipeline/layer_tensors.py", "pipeline/feed_forward.py",
    "pipeline/architectures.py", "pipeline/layers.py",
    "pipeline/projection.py", "pipeline/calibration/metrics.py", "pipeline/observations/moments.py",
    "pipeline/observations/experts.py",
    "pipeline/calibration/output_blocks.py", "pipeline/gguf_file/encode.py", "pipeline/gguf_file/reader.py",
)  # fmt: skip
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "scores": ("native/evaluate.py", "native/recorded.py", "native/scoring.py"),
    "answers": ("native/generate.py", "native/chat_template.py", "native/measure.py"),
    "operation": ("pipeline/operation", *DECOMPOSING),
    "latent": ("pipeline/latent", "native/inputs.py", *DECOMPOSING),
    "quantising": ("pipeline/quantization.py", "pipeline/operation/patch.py", "native/quantize_file.py",
        "native/quantize_rows.py"),
    "asking": ("native/likelihood.py", "native/completion.py"),
    "tasks": ("pipeline/tasks",),
    "writing": ("native/writing.py",),
    "calibration": ("pipeline/calibration/calibrate.py", "pipeline/calibration/mixture.py",
        "pipeline/observations/moments.py", "pipeline/observations/experts.py",
        "pipeline/calibration/sensitivity.py", "pipeline/observations/statistics_file.py", "native/capture.py",
        "native/observer.py", "native/probe.py", "native/scoring.py"),
}  # fmt: skip
"""The modules, or folders of modules, that decide an algorithm's numbers."""


@cache
def revision(algorithm: str) -> str:
    """The revision of one of ALGORITHMS: twelve hexadecimal digits."""
    statements = sorted(
        hashlib.sha256("\0".join(_tokens(statement)).encode()).digest()
        for place in ALGORITHMS[algorithm]
        for module in _modules(ROOT / place)
        for statement in _bare(ast.parse(module.read_bytes())).body
    )
    return hashlib.sha256(b"".join(statements)).hexdigest()[:12]


def revisions(*algorithms: str) -> dict[str, str]:
    """What a key needs to know of the code: the revisions of these, and the version of llama.cpp."""
    return {"llama.cpp": LLAMA_CPP_VERSION, **{name: revision(name) for name in algorithms}}


def made_with(threads: int, *algorithms: str) -> dict[str, Any]:
    """What a number was measured with, to stand beside it: code, libraries, kernels, processor, threads."""
    return {
        "surgery": __version__,
        "revisions": {name: revision(name) for name in algorithms},
        "llama_cpp": LLAMA_CPP_VERSION,
        "instruction_set": instruction_set(),
        "numpy": np.__version__,
        "blas": _blas(),
        "machine": machine_name(),
        "threads": threads or default_threads(),
    }


def _modules(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


class _Stripper(ast.NodeTransformer):
    """Takes away what computes nothing: docstrings, annotations, imports, and what exceptions say."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(exc=None, cause=None)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def _bare(module: ast.Module) -> ast.Module:
    bare = _Stripper().visit(module)
    assert isinstance(bare, ast.Module)
    return bare


def _tokens(node: ast.AST) -> Iterator[str]:
    """The kinds and values of a syntax tree's nodes in order; what is empty is left out, as Python's versions differ."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield name
                yield from _tokens(item)
            elif item is not None and name not in ("kind", "type_comment", "simple", "is_async"):
                yield f"{name}={item!r}"
    yield ")"


@cache
def _blas() -> str:
    """NumPy's BLAS, its version and kernel, such as `openblas 0.3.27 Haswell`."""
    import threadpoolctl

    libraries = [library for library in threadpoolctl.threadpool_info() if library.get("user_api") == "blas"]
    described = (" ".join(filter(None, (b["internal_api"], b["version"], b.get("architecture")))) for b in libraries)
    return ", ".join(dict.fromkeys(described)) or "unknown"
