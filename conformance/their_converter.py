"""llama.cpp's own converter on many checkpoints, in a process of its own: it brings a gguf package of its own.

Run as `python -m conformance.their_converter SOURCES`, llama.cpp's folder; stdin holds a JSON list of jobs, stdout will
hold what went wrong with each: a line of JSON, null for nothing.
"""

import contextlib
import importlib
import json
import sys
from typing import Any


def main(sources: str, jobs: list[dict[str, Any]]) -> list[str | None]:
    """Do every job: a checkpoint's `folder`, the file `theirs`, the `outtype`, and `pre`, the pre-tokenizer's name or null.

    The converter knows a pre-tokenizer by a hash of what a vocabulary makes of a text, and so none of a vocabulary that
    was trained here: where `pre` is given, it is told.
    """
    sys.path[:0] = [sources, f"{sources}/gguf-py"]
    converter = importlib.import_module("convert_hf_to_gguf")
    text_model: Any = importlib.import_module("conversion.base").TextModel
    by_hash = text_model.get_vocab_base_pre
    failures: list[str | None] = []
    for job in jobs:
        told = job["pre"]
        text_model.get_vocab_base_pre = by_hash if told is None else lambda *_, told=told: told
        sys.argv = ["convert_hf_to_gguf.py", job["folder"], "--outfile", job["theirs"], "--outtype", job["outtype"]]
        try:
            converter.main()
            failures.append(None)
        except (Exception, SystemExit) as error:
            failures.append(f"{type(error).__name__}: {error}")
    return failures


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        failures = main(sys.argv[1], json.load(sys.stdin))
    json.dump(failures, sys.stdout)
