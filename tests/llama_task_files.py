"""Task files in the formats of llama.cpp's perplexity tool, made from a seed."""

import random
import struct
from pathlib import Path

NAMES = ["Anna", "Ben", "Carl", "Dora", "Emil", "Fritz", "Gina", "Hans"]
VERBS = ["sees", "paints", "buys", "carries", "forgets", "repairs", "hides", "sells"]
THINGS = ["a red boat", "the old house", "two apples", "his bicycle", "a letter", "the map", "some bread"]


def sentences(seed: int, count: int) -> list[tuple[str, list[str], int]]:
    """A beginning, four different endings, and which one counts as right."""
    chooser = random.Random(seed)
    return [
        (
            f"{chooser.choice(NAMES)} meets {chooser.choice(NAMES)}, then {chooser.choice(NAMES)}",
            [f"{verb} {chooser.choice(THINGS)}." for verb in chooser.sample(VERBS, 4)],
            chooser.randrange(4),
        )
        for _ in range(count)
    ]


def write_hellaswag(path: Path, count: int, seed: int = 0) -> Path:
    lines = [line for start, ends, right in sentences(seed, count) for line in (start, str(right), *ends)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_winogrande(path: Path, count: int, seed: int = 0) -> Path:
    """Long and short ends after the choice, quoted sentences with commas, and a last line, which the tool drops."""
    chooser = random.Random(seed)
    lines = []
    for number in range(count + 1):
        one, other = chooser.sample(NAMES, 2)
        end = chooser.choice(["was late again for the show.", "won.", "had bread, cheese and wine left."])
        sentence = f"{one} called {other} because _ {end}"
        quoted = f'"{sentence}"' if "," in sentence or number % 3 == 0 else sentence
        lines.append(f"{number},{quoted},{one},{other},{chooser.randrange(1, 3)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_multiple_choice(path: Path, count: int, seed: int = 0) -> Path:
    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    tasks = []
    for start, ends, right in sentences(seed, count):
        labels = struct.pack("<4i", *(int(number == right) for number in range(4)))
        answers = struct.pack("<I", 4) + b"".join(map(text, ends)) + labels
        tasks.append(text(start) + answers + struct.pack("<I", 0))
    position, positions = 4 + 4 * count, []
    for task in tasks:
        positions.append(position)
        position += len(task)
    path.write_bytes(struct.pack(f"<{count + 1}I", count, *positions) + b"".join(tasks))
    return path
