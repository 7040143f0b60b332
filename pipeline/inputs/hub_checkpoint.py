"""Checkpoints by their names at the hub: org/name and org/name@revision."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.convert.weights import INDEX_FILES, SINGLE_FILES, SMALL_FILES, shard_names
from pipeline.errors import SurgeryError
from pipeline.inputs.hub import contact
from pipeline.inputs.hub_gguf import available

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")


@dataclass(frozen=True)
class Download:
    """A repository's files in the local cache: of which repository, and which commit."""

    folder: Path
    repository: str
    commit: str


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form org/name or org/name@revision, and is not the name of a GGUF file."""
    return bool(HUB_ID.fullmatch(name)) and not name.endswith(".gguf")


def download(name: str) -> Download:
    """Fetch what a conversion needs of the repository `name` (org/name or org/name@revision), unless it is cached.

    Weights are fetched in one format only, safetensors if there are any. Raises SurgeryError, in one line, for no
    network, no such repository or revision, no permission, and a full disk.
    """
    match = HUB_ID.fullmatch(name)
    assert match is not None
    repository, revision = match["repository"], match["revision"]
    with contact(name) as package:
        fetch = package.snapshot_download
        folder = Path(fetch(repository, revision=revision, allow_patterns=[*SMALL_FILES]))
        if not (folder / "config.json").exists():
            files = package.HfApi().list_repo_files(repository, revision=folder.name)
            raise SurgeryError(f"{name}: has no config.json, so it is not a checkpoint; {available(repository, files)}")
        for weights in _weight_patterns(folder):
            # By the commit, not the revision, which may move in between.
            fetch(repository, revision=folder.name, allow_patterns=weights)
            if any((folder / file).exists() for file in weights):
                return Download(folder, repository, folder.name)
    raise SurgeryError(f"{name}: has neither {' nor '.join(SINGLE_FILES)}, in one file or in shards")


def _weight_patterns(folder: Path) -> Iterator[list[str]]:
    """The files that may hold the weights, the preferred ones first."""
    for index, single in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        yield shard_names(folder / index) if (folder / index).is_file() else [single]
