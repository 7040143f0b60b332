"""Checkpoints from the hub, through huggingface_hub: its cache, resumed downloads, tokens and environment variables."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.convert.weights import INDEX_FILES, SINGLE_FILES, SMALL_FILES, shard_names
from pipeline.errors import SurgeryError
from pipeline.extras import require

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
            ggufs = sorted(file for file in files if file.endswith(".gguf"))
            instead = f"name one of its GGUF files: {', '.join(f'{repository}/{file}' for file in ggufs)}"
            raise SurgeryError(
                f"{name}: has no config.json, so it is not a checkpoint; {instead if ggufs else 'it has no GGUF files, either'}"
            )
        for weights in _weight_patterns(folder):
            # By the commit, not the revision, which may move in between.
            fetch(repository, revision=folder.name, allow_patterns=weights)
            if any((folder / file).exists() for file in weights):
                return Download(folder, repository, folder.name)
    raise SurgeryError(f"{name}: has neither {' nor '.join(SINGLE_FILES)}, in one file or in shards")


@contextmanager
def contact(name: str) -> Iterator[Any]:
    """huggingface_hub, to fetch `name` with; what goes wrong with it becomes a SurgeryError, in one line."""
    package = require("huggingface_hub", "hub", f"{name}: fetching a model from the hub")
    _ = package.snapshot_download  # the package loads its parts when they are asked for, this one nearly all
    package.utils.logging.set_verbosity_error()  # retries and the like; what fails is raised
    if not sys.stderr.isatty():
        package.utils.disable_progress_bars()
    try:
        yield package
    except SurgeryError:
        raise
    except Exception as error:  # of several packages, and named in none of their documentation
        raise _explained(package, name, error) from error


def _weight_patterns(folder: Path) -> Iterator[list[str]]:
    """The files that may hold the weights, the preferred ones first."""
    for index, single in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        yield shard_names(folder / index) if (folder / index).is_file() else [single]


def _explained(package: ModuleType, name: str, error: BaseException) -> SurgeryError:
    """What a failed download means for the user."""
    errors = package.errors
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    repository = name.partition("@")[0]

    def has(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in chain)

    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if any(isinstance(link, OSError) and link.errno in full for link in chain):
        return SurgeryError(
            f"{name}: no space left in the hub's cache, {package.constants.HF_HUB_CACHE}; make room, or set HF_HOME to a folder elsewhere"
        )
    if denied := next((link for link in chain if isinstance(link, PermissionError)), None):
        return SurgeryError(f"{name}: the hub's cache cannot be written: {denied}; set HF_HOME to a folder of yours")
    if has(errors.GatedRepoError):
        return SurgeryError(
            f"{name}: access is restricted; accept its terms at {package.constants.ENDPOINT}/{repository}, then run: hf auth login"
        )
    if has(errors.RevisionNotFoundError):
        return SurgeryError(f"{name}: the hub has {repository}, but no such revision; leave out @ and what follows")
    if has(errors.RepositoryNotFoundError):
        return SurgeryError(
            f"{name}: neither a file or folder here nor a model at the hub; check the name, and if it is private run: hf auth login"
        )
    if has(errors.OfflineModeIsEnabled) or package.constants.HF_HUB_OFFLINE:
        return SurgeryError(f"{name}: is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it")
    statuses = [link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)]
    if 401 in statuses or 403 in statuses:
        return SurgeryError(f"{name}: the hub refuses access; check your token, or run: hf auth login")
    if statuses:
        return SurgeryError(f"{name}: the hub answered with error {statuses[0]}; try again later")
    reason = str(chain[-1]).strip().splitlines()
    return SurgeryError(
        f"{name}: the hub at {package.constants.ENDPOINT} cannot be reached ({reason[0] if reason else type(chain[-1]).__name__});"
        " check the network and run the same command again"
    )
