"""Whether a model is evaluated on what it was calibrated on.

That is whether two texts share lines, from a sketch of one that is small enough for a model's metadata.

The sketch is the SKETCH_SIZE smallest hashes of a text's distinct long lines. A line of another text whose hash is
below the largest of them is in the first text if and only if it is in the sketch, so their share is an estimate of
the share of all lines (Bar-Yossef et al., Counting distinct elements in a data stream, 2002).
"""

import zlib
from collections.abc import Sequence

from pipeline.gguf_file.reader import GGUFModel
from pipeline.inputs.texts import Text

SHORTEST_LINE = 40  # characters; shorter lines, such as headings, stand in unrelated texts too
SKETCH_SIZE = 1024
SHARED_ENOUGH = 0.01


def line_hashes(text: str) -> set[int]:
    """CRC-32 of each distinct line of at least SHORTEST_LINE characters, blanks at its ends not counted."""
    lines = (line.strip() for line in text.splitlines())
    return {zlib.crc32(line.encode()) for line in lines if len(line) >= SHORTEST_LINE}


def line_sketch(text: str) -> list[int]:
    """The SKETCH_SIZE smallest of the text's line hashes, ascending."""
    return sorted(line_hashes(text))[:SKETCH_SIZE]


def shared_lines(sketch: Sequence[int], text: str) -> float:
    """The estimated share, in [0, 1], of the long lines of `text` that are in the text that `sketch` is of."""
    known = set(sketch)
    limit = max(known, default=0) if len(known) == SKETCH_SIZE else 2**32
    comparable = {value for value in line_hashes(text) if value <= limit}
    return len(comparable & known) / len(comparable) if comparable else 0.0


def contamination_warning(model: GGUFModel, text: Text) -> str | None:
    """What to say when `model` was calibrated on `text` or on parts of it; None when it was not.

    Overlap means the same text, or that at least SHARED_ENOUGH of the long lines of `text` were calibrated on.
    """
    sketch = model.get("surgery.calibration.sketch", [])
    share = 1.0 if model.get("surgery.calibration.text_sha256") == text.sha256 else shared_lines(sketch, text.content)
    if share < SHARED_ENOUGH:
        return None
    return (
        f"{model.name} was calibrated on {model.get('surgery.calibration.text')}, which holds"
        f" about {share:.0%} of {text.name}; what is measured here looks better than it is"
    )
