"""What was done to a model, as `surgery.*` metadata of the file that was written."""

import json
from contextlib import suppress

from pipeline.gguf_file.reader import GGUFModel

PREFIX = "surgery."
UNKNOWN_HASH = "0" * 64


def earlier_operations(model: GGUFModel) -> dict[str, str]:
    """What operations on the same model left, as JSON under `previous`; empty if there were none."""
    earlier = {key: entry.value for key, entry in model.metadata.items() if key.startswith(PREFIX)}
    if PREFIX + "previous" in earlier:
        # nested as JSON, not as JSON within a string, which would double with each operation
        with suppress(ValueError, TypeError, RecursionError):
            earlier[PREFIX + "previous"] = json.loads(earlier[PREFIX + "previous"])
    return {"previous": json.dumps(earlier)} if earlier else {}
