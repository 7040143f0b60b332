"""GGUF files at the hub by the names that llama.cpp and Ollama give them, against a small hub on loopback."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.hub_gguf import HubFile, find_hub_file, model_files, of_type, parse_hub_file
from tests.conftest import SurgeryProcess
from tests.convert.small_hub import COMMIT, SmallHub, environment, serve

REPOSITORY = "some-org/tiny-GGUF"


@pytest.fixture
def hub(tiny: Path, tmp_path: Path) -> Iterator[SmallHub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "tiny-UD-Q4_K_M.gguf", "mmproj-tiny-F16.gguf"):
        shutil.copyfile(tiny, folder / name)
    with serve(SmallHub({REPOSITORY: {"main": COMMIT}}, {COMMIT: folder})) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "revision", "kind", "file"),
    [
        ("some-org/tiny-GGUF:Q8_0", None, "Q8_0", None),
        ("hf.co/some-org/tiny-GGUF:q8_0", None, "q8_0", None),
        ("hf.co/some-org/tiny-GGUF", None, None, None),
        ("hf.co/some-org/tiny-GGUF:latest", None, None, None),
        ("https://huggingface.co/some-org/tiny-GGUF/blob/v1/sub/a.gguf", "v1", None, "sub/a.gguf"),
        ("some-org/tiny-GGUF/a.gguf", None, None, "a.gguf"),
        ("some-org/tiny-GGUF@v1:Q4_0", "v1", "Q4_0", None),
    ],
)
def test_names(name: str, revision: str | None, kind: str | None, file: str | None) -> None:
    assert parse_hub_file(name) == HubFile(name, REPOSITORY, revision, kind, file)


@pytest.mark.parametrize("name", ["some-org/tiny", "tiny.gguf", "folder/tiny.gguf", "smollm2-135m", "", "/a/b/c.gguf"])
def test_what_is_no_file_of_the_hub(name: str) -> None:
    assert parse_hub_file(name) is None


def test_a_type_is_a_whole_word_and_the_plainest_name_wins() -> None:
    files = ["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m.q4_k.gguf", "sub/m_IQ4_XS.gguf"]
    assert [of_type(files, kind) for kind in ("q4_k_m", "Q4_K", "IQ4_XS", "Q4")] == [
        "m-Q4_K_M.gguf", "m.q4_k.gguf", "sub/m_IQ4_XS.gguf", None,
    ]  # fmt: skip


def test_of_a_split_model_the_first_part_counts() -> None:
    assert model_files(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "imatrix.gguf", "README.md"]) == [
        "a-00001-of-00002.gguf"
    ]


def test_fetched_once_and_found_offline(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    first = surgery("inspect", f"hf.co/{REPOSITORY}:Q8_0", "--json", env=env)
    assert first.returncode == 0, first.stderr
    assert hub.fetched() == {"tiny-Q8_0.gguf"}
    hub.requests.clear()
    again = surgery("inspect", f"{REPOSITORY}/tiny-Q8_0.gguf", "--json", env=env | {"HF_HUB_OFFLINE": "1"})
    assert again.returncode == 0, again.stderr
    assert hub.requests == []
    default = surgery("operate", f"hf.co/{REPOSITORY}", "-o", "out.gguf", "--rank", "2", env=env)
    assert default.returncode == 0, default.stderr
    cached = {path.name for path in (tmp_path / "hf-home").rglob("snapshots/*/*.gguf")}
    assert cached == {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf"}
    assert open_gguf(tmp_path / "out.gguf").get("surgery.source.name") is not None


def test_what_is_not_there_is_told_with_what_is(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    models = ", ".join(f"{REPOSITORY}/tiny-{kind}.gguf" for kind in ("Q4_K_M", "Q8_0", "UD-Q4_K_M"))
    for name in (f"{REPOSITORY}:Q2_K", f"{REPOSITORY}/typo.gguf"):
        result = surgery("inspect", name, env=env)
        assert result.returncode == 1
        assert result.stderr == (
            f"surgery: {name}: {REPOSITORY} has no such file; name one of its GGUF files: {models}; nor is there a file {name} here\n"
        )
    bare = surgery("operate", REPOSITORY, "-o", "out.gguf", env=env)
    assert f"name one of its GGUF files: {models}" in bare.stderr


def test_split_models_come_whole(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    for part in (1, 2):
        (hub.folders[COMMIT] / f"big-Q6_K-0000{part}-of-00002.gguf").write_bytes(b"GGUF" + bytes([part]))
    surgery("inspect", f"{REPOSITORY}:Q6_K", env=environment(hub, tmp_path))
    assert hub.fetched() == {"big-Q6_K-00001-of-00002.gguf", "big-Q6_K-00002-of-00002.gguf"}


def test_what_other_programs_have_downloaded(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    llama_cpp = tmp_path / ".cache/llama.cpp/some-org_tiny-GGUF_tiny-Q4_K_M.gguf"
    studio = tmp_path / ".lmstudio/models/some-org/tiny-GGUF/tiny-Q8_0.gguf"
    for path in (llama_cpp, studio):
        path.parent.mkdir(parents=True)
        shutil.copyfile(tiny, path)
    for name, path in ((":Q4_K_M", llama_cpp), (":Q8_0", studio), ("/tiny-Q8_0.gguf", studio)):
        wanted = parse_hub_file(REPOSITORY + name)
        assert wanted is not None
        assert find_hub_file(wanted) == path
