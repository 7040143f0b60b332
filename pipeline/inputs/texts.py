"""Texts to measure with: a file, or what every CPython carries: its language reference, and its own sources."""

import hashlib
import sysconfig
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from native.errors import TextError
from pipeline.errors import SurgeryError, UsageError, no_file

EVALUATION_TEXT = "python-docs"
CALIBRATION_TEXT = "python-docs-calibration"
AUTO_TEXT = "auto"
"""What to calibrate on by default, see `pipeline.calibration.obtain`."""
CODE_TEXT = "python-code"
CODE_CALIBRATION_TEXT = "python-code-calibration"
EMBEDDED_TEXTS = (EVALUATION_TEXT, CALIBRATION_TEXT, CODE_TEXT, CODE_CALIBRATION_TEXT)
CODE_PACKAGES = ("collections", "email", "html", "http", "json", "logging", "unittest", "urllib")
"""What `python-code` is made of: packages of the standard library that change little between versions of Python."""
TELLING_LINE = 40  # characters; shorter lines stand in unrelated code, too


@dataclass(frozen=True)
class Text:
    """A text, its name on the command line and the SHA-256 of its UTF-8 bytes.

    `coherent` is a part of it that hangs together, where others of that length may not.
    """

    name: str
    content: str
    coherent: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def named(texts: Sequence[Text], events: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """`events` of llama.cpp on `texts`; what it finds wrong with one is said of its name. Raises SurgeryError."""
    try:
        return (yield from events)
    except TextError as error:
        raise SurgeryError(f"{texts[error.text].name}: {error}") from None


def read_text(name: str, argument: str = "text") -> Text:
    """The text called `name`, or the file at that path. One trailing newline is dropped, as llama.cpp's tools do.

    `argument` is where the name came from. Raises UsageError when there is no such file, SurgeryError when it is not
    UTF-8 or Python is without its sources.
    """
    if name in EMBEDDED_TEXTS:
        return Text(name, embedded_text(name))
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"`{argument}` {name}: {no_file(path)}; name a UTF-8 text file, or one of {', '.join(EMBEDDED_TEXTS)}"
        )
    try:
        content = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise SurgeryError(f"`{argument}` {name}: not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise SurgeryError(f"`{argument}` {name}: cannot be read: {error.strerror}") from None
    return Text(name, content.removesuffix("\n"))


@cache
def embedded_text(name: str) -> str:
    """One half of the topics in `pydoc_data.topics`, or of the modules of CODE_PACKAGES, whichever `name` says.

    A topic or module whose name has an odd CRC-32 calibrates, the others evaluate. The rule looks at the name alone, so
    that none ever changes sides between versions of Python. Topics quote each other, modules repeat what is usual: a
    paragraph of topics that the evaluation half has, too, and one of code that has a long line of it, is left out of
    the calibration half.
    """
    code = name in (CODE_TEXT, CODE_CALIBRATION_TEXT)
    halves: list[list[str]] = [[], []]
    for title, content in _modules() if code else _topics():
        halves[zlib.crc32(title.encode()) % 2] += content.split("\n\n")
    if name in (EVALUATION_TEXT, CODE_TEXT):
        return "\n\n".join(halves[0])
    known = {part for paragraph in halves[0] for part in _telling_parts(paragraph, code)}
    return "\n\n".join(paragraph for paragraph in halves[1] if not known & _telling_parts(paragraph, code))


def _telling_parts(paragraph: str, code: bool) -> set[str]:
    """What of a paragraph must not stand in the other half: its long lines if it is code, otherwise all of it."""
    if not code:
        return {" ".join(paragraph.split())}
    return {line.strip() for line in paragraph.splitlines() if len(line.strip()) >= TELLING_LINE}


def _topics() -> Iterable[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items())


def _modules() -> Iterator[tuple[str, str]]:
    """Names such as `json/decoder.py` and contents, in an order that mixes the packages."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for package in CODE_PACKAGES for path in library.glob(f"{package}/*.py")]
    if not paths:
        raise SurgeryError(f"{CODE_TEXT}: {library} holds no sources of Python's standard library; name a text file")
    for path in sorted(paths, key=lambda path: zlib.crc32(path.relative_to(library).as_posix().encode())):
        content = path.read_bytes()
        if content.isascii():
            yield path.relative_to(library).as_posix(), content.decode().strip()
