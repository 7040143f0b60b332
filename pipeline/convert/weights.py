"""Where a checkpoint folder keeps its weights: one file or shards with an index, safetensors before torch's format."""

from collections.abc import Callable
from pathlib import Path

from pipeline.convert.config import read_json
from pipeline.convert.safetensors_file import read_safetensors
from pipeline.convert.stored_tensor import StoredTensor
from pipeline.convert.torch_file import read_torch_file
from pipeline.errors import SurgeryError

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
SMALL_FILES = (
    "config.json",
    *INDEX_FILES,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
READERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": read_safetensors,
    ".bin": read_torch_file,
}


def find_weights(folder: Path) -> list[Path]:
    """The files that hold the weights, in order; empty when there are none. Raises SurgeryError for a missing shard."""
    for index, single in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = shard_names(folder / index)
            if missing := [name for name in shards if not (folder / name).is_file()]:
                raise SurgeryError(
                    f"{folder / index}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}"
                )
            return [folder / name for name in shards]
    return []


def shard_names(index: Path) -> list[str]:
    """The names of the files that an index lists, in its order. Raises SurgeryError for a damaged index."""
    return list(dict.fromkeys(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise SurgeryError(f"{index}: has no weight_map, so the shards are unknown; get the file anew")
    for name in entries.values():
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in READERS:
            raise SurgeryError(f"{index}: names the shard {name!r}; expected the name of a .safetensors or .bin file")
    return entries


def read_weights(folder: Path, paths: list[Path]) -> dict[str, StoredTensor]:
    """All tensors of the checkpoint by name. Raises SurgeryError when one is announced twice or not there."""
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        found = READERS[path.suffix](path)
        if twice := tensors.keys() & found.keys():
            raise SurgeryError(f"{path}: tensor {min(twice)} is also in {tensors[min(twice)].path.name}")
        tensors |= found
    if all(tensor.name == "lm_head.weight" for tensor in tensors.values()):
        raise SurgeryError(f"{paths[0]}: holds {len(tensors)} tensors, none of a layer; get the weights anew")
    if paths[0].name not in SINGLE_FILES:
        index = next(folder / name for name in INDEX_FILES if paths[0].suffix in name)
        absent = _weight_map(index).keys() - tensors.keys() - {"lm_head.weight"}  # tied ones are listed by some
        if absent:
            raise SurgeryError(f"{index}: tensor {min(absent)} is in none of the shards; get them anew")
    return tensors
