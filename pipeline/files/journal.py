"""A file that is only ever added to, a line a record, with a checksum: what a killed run leaves is whole but its end."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_journal(path: Path) -> Iterator[Any]:
    """The records of a journal in order; a line that was not finished counts for nothing, nor does a missing file."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        checksum, _, content = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(content):
            yield json.loads(content)


def add_record(path: Path, record: Any) -> None:
    """Add a record, of what JSON has, to a journal; it is on the disk when this returns."""
    content = json.dumps(record).encode()
    with path.open("ab") as file:  # a line of its own, also after one that was not finished
        file.write(b"\n%08x %s\n" % (zlib.crc32(content), content))
        file.flush()
        os.fsync(file.fileno())
