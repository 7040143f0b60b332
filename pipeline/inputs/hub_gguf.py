"""GGUF files by the names that llama.cpp and Ollama give them: org/repo:Q4_K_M, org/repo/file.gguf, hf.co/org/repo:Q8_0.

What is on this machine already is taken from where it is: the hub's own cache, llama.cpp's, LM Studio's. The rest is
fetched with huggingface_hub, into its cache.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SurgeryError
from pipeline.inputs.hub import contact

DEFAULT_TYPE = "Q4_K_M"  # as llama.cpp and Ollama choose where no type is named, if there is one
SITE = re.compile(r"(https?://)?(hf\.co|huggingface\.co)/")
NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>[\w.-]+))?"
    r"(:(?P<type>\w[\w.-]*)|/((blob|resolve)/(?P<branch>[\w.-]+)/)?(?P<file>\S+\.gguf))?"
)
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
NOT_MODELS = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # image encoders and importance matrices are GGUF files, too


@dataclass(frozen=True)
class HubFile:
    """Which file of which repository: `file` is a path in it, or else `kind` a type's name such as Q8_0, or neither."""

    name: str
    repository: str
    revision: str | None
    kind: str | None
    file: str | None


def parse_hub_file(name: str) -> HubFile | None:
    """What `name` asks of the hub; None for what is not of this form, org/repo alone among it."""
    site = SITE.match(name)
    match = NAME.fullmatch(name[site.end() :] if site else name)
    if match is None or not (site or match["type"] or match["file"]):
        return None
    kind = None if match["type"] == "latest" else match["type"]
    return HubFile(name, match["repository"], match["revision"] or match["branch"], kind, match["file"])


def find_hub_file(wanted: HubFile) -> Path:
    """The file on this machine, its first part if it is split; it is fetched if it is not there yet.

    Raises SurgeryError when the hub has no such file or cannot be reached, naming the files that there are.
    """
    for folder, files in local_files(wanted):
        chosen = _chosen(wanted, files)
        if chosen and all(part in files and (folder / files[part]).is_file() for part in part_names(chosen)):
            return folder / files[chosen]
    return _fetch(wanted)


def _fetch(wanted: HubFile) -> Path:
    with contact(wanted.name) as package:
        listed = package.HfApi().list_repo_files(wanted.repository, revision=wanted.revision)
        chosen = _chosen(wanted, listed)
        if chosen is None and wanted.kind is wanted.file is None and len(model_files(listed)) == 1:
            [chosen] = model_files(listed)
        if chosen is None:
            raise SurgeryError(
                f"{wanted.name}: {wanted.repository} has no such file; {available(wanted.repository, listed)}"
            )
        paths = [
            package.hf_hub_download(wanted.repository, part, revision=wanted.revision) for part in part_names(chosen)
        ]
        return Path(paths[0])


def model_files(files: Iterable[str]) -> list[str]:
    """The models among a repository's files: of a split one the first part."""
    ggufs = sorted(file for file in files if file.endswith(".gguf") and not NOT_MODELS.search(file))
    return [file for file in ggufs if not (part := PART.search(file)) or int(part[1]) == 1]


def available(repository: str, files: Iterable[str]) -> str:
    """For a message: what may be asked for instead."""
    models = [f"{repository}/{file}" for file in model_files(files)]
    return f"name one of its GGUF files: {', '.join(models)}" if models else "it has no GGUF files"


def part_names(file: str) -> list[str]:
    """All parts of a split model of which `file` is one; `file` alone if it is whole."""
    part = PART.search(file)
    if part is None:
        return [file]
    return [f"{file[: part.start()]}-{number:05d}-of-{part[2]}.gguf" for number in range(1, int(part[2]) + 1)]


def _chosen(wanted: HubFile, files: Iterable[str]) -> str | None:
    models = model_files(files)
    if wanted.file is not None:
        return wanted.file if wanted.file in models else None
    return of_type(models, wanted.kind or DEFAULT_TYPE)


def of_type(models: Iterable[str], kind: str) -> str | None:
    """The model whose name says that it is of this type, the shortest name if there are several; UD-Q4_K_M is not Q4_K_M."""
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?<!UD-){re.escape(kind)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return min(
        (model for model in models if pattern.search(model)), key=lambda model: (len(model), model), default=None
    )


def local_files(wanted: HubFile) -> Iterator[tuple[Path, dict[str, str]]]:
    """Folders of this machine that may hold the repository's files: their names in the repository, and in the folder."""
    snapshot = _snapshot(wanted)
    if snapshot is not None:
        yield snapshot, _beneath(snapshot)
    if wanted.revision is not None:
        return  # the others do not say which revision they have
    home, organisation = Path.home(), wanted.repository.replace("/", "_") + "_"
    caches = [os.environ.get("LLAMA_CACHE"), home / ".cache/llama.cpp", home / "Library/Caches/llama.cpp"]
    for folder in (Path(cache) for cache in caches if cache):
        yield folder, {path.name.removeprefix(organisation): path.name for path in folder.glob(f"{organisation}*.gguf")}
    for models in (home / ".lmstudio/models", home / ".cache/lm-studio/models"):
        yield models / wanted.repository, _beneath(models / wanted.repository)


def _beneath(folder: Path) -> dict[str, str]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    return dict(zip(names, names, strict=True))


def _snapshot(wanted: HubFile) -> Path | None:
    """The repository's folder in huggingface_hub's cache at this revision, if it is there."""
    root = (
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub"
    )
    repository = Path(root) / f"models--{wanted.repository.replace('/', '--')}"
    revision = wanted.revision or "main"
    reference = repository / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None
