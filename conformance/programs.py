"""llama.cpp's own programs: what they measure and write."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("test-llama-archs", "llama-perplexity", "llama-imatrix", "llama-quantize", "llama-gguf-split")


@dataclass(frozen=True)
class Programs:
    """The programs in a folder, run in one thread; arguments as on their command lines."""

    folder: Path

    def run(self, name: object, *arguments: object) -> str:
        """Everything that it printed. Raises ProgramError when it fails."""
        command = [str(self.folder / str(name)), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode < 0:
            raise CrashError(f"{name} itself is ended by signal {-done.returncode}")
        if done.returncode:
            raise ProgramError(f"{name} ended with {done.returncode}: {_last_line(done.stderr + done.stdout)}")
        return done.stdout + done.stderr

    def perplexity(self, model: Path, text: Path, n_ctx: int, chunks: int, logits: Path) -> float:
        """The perplexity; the logits are kept in the file `logits`, in 16 bits, for `divergence`."""
        printed = self.run(*_perplexity(model, text, n_ctx, chunks), "--kl-divergence-base", logits)
        return _number(rf"\[{chunks}\]([\d.]+|nan),", printed)

    def divergence(self, model: Path, text: Path, n_ctx: int, chunks: int, logits: Path) -> float:
        """The mean KL divergence of a model from the one whose logits `perplexity` kept."""
        command = [*_perplexity(model, text, n_ctx, chunks), "--kl-divergence-base", logits, "--kl-divergence"]
        return _number(rf"(?m)^ *{chunks} +\S+ ± +\S+ +\S+ ± +\S+ +(-?[\d.]+|nan) ±", self.run(*command))

    def importance_matrix(self, model: Path, text: Path, n_ctx: int, chunks: int, output: Path) -> Path:
        self.run(
            "llama-imatrix", "-m", model, "-f", text, "-c", n_ctx, "-b", n_ctx, "--chunks", chunks, "-o", output,
            "--no-ppl", "-fa", "off", "-t", 1, "-ngl", 0,
        )  # fmt: skip
        return output

    def quantize(self, model: Path, output: Path, kind: str) -> Path:
        self.run("llama-quantize", model, output, kind, 1)
        return output


def _perplexity(model: Path, text: Path, n_ctx: int, chunks: int) -> list[object]:
    """One chunk at a time and one more than is wanted: what is printed at the very end may be lost with its logger."""
    options = ("-c", n_ctx, "-b", n_ctx, "--chunks", chunks + 1, "-t", 1, "-ngl", 0)
    return ["llama-perplexity", "-m", model, "-f", text, *options]


def _number(pattern: str, printed: str) -> float:
    if not (match := re.search(pattern, printed)):
        raise ProgramError(f"nothing like {pattern!r} was printed: {_last_line(printed)}")
    return float(match[1])


class ProgramError(Exception):
    """A program of llama.cpp's failed."""


class CrashError(ProgramError):
    """A program of llama.cpp's crashed: there is nothing to compare with."""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word"
