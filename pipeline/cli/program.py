"""How this program is called, for what messages tell the user to do next."""

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`surgery`, or the path that it was called by where the shell would not find that very file by the name alone."""
    called = Path(sys.argv[0])
    if called.name != "surgery" or called.parent == Path() or shutil.which("surgery") == str(called):
        return "surgery"
    return shlex.quote(sys.argv[0])
