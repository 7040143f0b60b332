"""Texts to measure with: a file, or the Python language reference that every CPython carries."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SurgeryError, UsageError, no_file

EVALUATION_TEXT = "python-docs"
CALIBRATION_TEXT = "python-docs-calibration"


@dataclass(frozen=True)
class Text:
    """A text, its name on the command line and the SHA-256 of its UTF-8 bytes."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def read_text(name: str) -> Text:
    """The text called `name`, or the file at that path. One trailing newline is dropped, as llama.cpp's tools do.

    Raises UsageError when there is no such file, SurgeryError when it is not UTF-8.
    """
    if name in (EVALUATION_TEXT, CALIBRATION_TEXT):
        return Text(name, python_docs(calibration=name == CALIBRATION_TEXT))
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--text {name}: {no_file(path)}; name a UTF-8 text file, {EVALUATION_TEXT} or {CALIBRATION_TEXT}"
        )
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SurgeryError(f"--text {name}: not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise SurgeryError(f"--text {name}: cannot be read: {error.strerror}") from None
    return Text(name, content.removesuffix("\n"))


def python_docs(*, calibration: bool) -> str:
    """One half of the topics in `pydoc_data.topics`: those whose name has an odd CRC-32 calibrate, the rest evaluate.

    The rule looks at a topic's name alone, so a topic never changes sides between versions of Python. Topics quote
    each other: a paragraph that the evaluation half has, too, is left out of the calibration half.
    """
    from pydoc_data.topics import topics

    halves: list[list[str]] = [[], []]
    for name in sorted(topics):
        halves[zlib.crc32(name.encode()) % 2] += topics[name].split("\n\n")
    if not calibration:
        return "\n\n".join(halves[0])
    evaluation = {" ".join(paragraph.split()) for paragraph in halves[0]}
    return "\n\n".join(paragraph for paragraph in halves[1] if " ".join(paragraph.split()) not in evaluation)
