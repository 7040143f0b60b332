"""llama.cpp's own programs: what they measure and write."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ATTEMPTS = 5
NAMES = ("test-llama-archs", "llama-perplexity", "llama-imatrix", "llama-quantize", "llama-gguf-split")


@dataclass(frozen=True)
class Programs:
    """The programs in a folder, run in one thread; arguments as on their command lines."""

    folder: Path

    def run(self, name: str, *arguments: object) -> str:
        """Everything that it printed. Raises ProgramError when it fails."""
        command = [str(self.folder / name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode < 0:
            raise CrashError(f"{name} itself is ended by signal {-done.returncode}")
        if done.returncode:
            raise ProgramError(f"{name} ended with {done.returncode}: {_last_line(done.stderr + done.stdout)}")
        return done.stdout + done.stderr

    def number(self, pattern: str, name: object, *arguments: object) -> float:
        """The number that it printed. Its log is written by a thread that may be cut off at its end: so more than once."""
        for _ in range(ATTEMPTS):
            if match := re.search(pattern, printed := self.run(str(name), *arguments)):
                return float(match[1])
        raise ProgramError(f"{name} printed nothing like {pattern!r}: {_last_line(printed)}")

    def perplexity(self, model: Path, text: Path, n_ctx: int, chunks: int, logits: Path) -> float:
        """The perplexity; the logits are kept in the file `logits`, in 16 bits, for `divergence`."""
        return self.number(
            r"Final estimate: PPL = ([\d.]+|nan)",
            *_perplexity(model, text, n_ctx, chunks),
            "--kl-divergence-base",
            logits,
        )

    def divergence(self, model: Path, text: Path, n_ctx: int, chunks: int, logits: Path) -> float:
        """The mean KL divergence of a model from the one whose logits `perplexity` kept."""
        return self.number(
            r"Mean +KLD: +(-?[\d.e-]+|nan)",
            *_perplexity(model, text, n_ctx, chunks),
            "--kl-divergence-base",
            logits,
            "--kl-divergence",
        )

    def importance_matrix(self, model: Path, text: Path, n_ctx: int, chunks: int, output: Path) -> Path:
        self.run(
            "llama-imatrix", "-m", model, "-f", text, "-c", n_ctx, "-b", n_ctx, "--chunks", chunks, "-o", output,
            "--no-ppl", "-t", 1, "-ngl", 0,
        )  # fmt: skip
        return output

    def quantize(self, model: Path, output: Path, kind: str) -> Path:
        self.run("llama-quantize", model, output, kind, 1)
        return output


def _perplexity(model: Path, text: Path, n_ctx: int, chunks: int) -> tuple[object, ...]:
    return ("llama-perplexity", "-m", model, "-f", text, "-c", n_ctx, "--chunks", chunks, "-t", 1, "-ngl", 0)


class ProgramError(Exception):
    """A program of llama.cpp's failed."""


class CrashError(ProgramError):
    """A program of llama.cpp's crashed: there is nothing to compare with."""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word"
