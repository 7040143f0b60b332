"""Models from the hub: the real huggingface_hub, over real HTTP, against a small hub on loopback."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.gguf_file.reader import open_gguf
from tests.conftest import SurgeryProcess
from tests.convert.changes import change_config, change_weights
from tests.convert.checkpoints import make_checkpoint
from tests.convert.conftest import MakeFolder
from tests.convert.small_hub import COMMIT, OLD_COMMIT, SmallHub, environment, serve
from tests.convert.written import tensors_of

REPOSITORY = "some-org/tiny-model"
CLUTTER = ("README.md", "consolidated.safetensors", "pytorch_model.bin", "model.onnx", "merges.txt", "vocab.json")


@pytest.fixture
def hub(checkpoint: MakeFolder, tmp_path: Path) -> Iterator[SmallHub]:
    """A hub with one model: sharded, with files that nobody needs beside it, and an old revision of other weights."""
    folder = make_checkpoint(tmp_path / "new", "llama3", max_shard_size="80KB")
    for name in CLUTTER:
        (folder / name).write_bytes(b"nobody needs this")
    folders = {COMMIT: folder, OLD_COMMIT: checkpoint("llama")}
    with serve(SmallHub({REPOSITORY: {"main": COMMIT, "v1.0": OLD_COMMIT}}, folders)) as running:
        yield running


def refused(result: "subprocess.CompletedProcess[str]", tmp_path: Path) -> str:
    """The one line that a failed command printed, when it left no output behind."""
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*.partial"))
    return result.stderr


def test_only_what_is_needed_is_fetched_and_only_once(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    result = surgery("operate", REPOSITORY, "-o", "out.gguf", "--threshold", "0.5", env=env)
    assert result.returncode == 0, result.stderr
    shards = {path.name for path in hub.folders[COMMIT].glob("model-*.safetensors")}
    assert len(shards) > 2
    assert hub.fetched() == shards | {
        "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    model = open_gguf(tmp_path / "out.gguf")
    assert model.get("general.name") == "tiny-model"
    assert model.get("general.source.repo_url") == f"https://huggingface.co/{REPOSITORY}"
    assert model.get("surgery.source.name") == f"{REPOSITORY}@{COMMIT}"
    local = surgery("operate", hub.folders[COMMIT], "-o", "local.gguf", "--threshold", "0.5")
    assert local.returncode == 0
    assert tensors_of(tmp_path / "local.gguf") == tensors_of(tmp_path / "out.gguf")

    hub.requests.clear()
    offline = surgery("convert", REPOSITORY, "again.gguf", env=env | {"HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 0, offline.stderr
    assert hub.requests == [], "HF_HUB_OFFLINE is honoured"
    online = surgery("convert", REPOSITORY, "again.gguf", "--force", env=env)
    assert online.returncode == 0
    assert hub.fetched() == set(), "what is cached is not fetched again"


def test_a_revision_with_a_single_file_and_tokenizer_model(
    hub: SmallHub, surgery: SurgeryProcess, converted: MakeFolder, tmp_path: Path
) -> None:
    result = surgery("convert", f"{REPOSITORY}@v1.0", "old.gguf", env=environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert tensors_of(tmp_path / "old.gguf") == tensors_of(converted("llama"))
    assert hub.fetched() == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip


def test_bin_weights_are_fetched_when_there_are_no_others(
    hub: SmallHub, surgery: SurgeryProcess, checkpoint: MakeFolder, converted: MakeFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "bin"
    shutil.copytree(checkpoint("qwen2"), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.folders[COMMIT] = folder
    result = surgery("convert", REPOSITORY, "out.gguf", env=environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(converted("qwen2"))


def test_a_broken_connection_is_resumed(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    """The weights take 25 MB: huggingface_hub writes, and resumes from, pieces of 10 MB."""
    folder = make_checkpoint(tmp_path / "large", "qwen2", torch.float16)
    change_config(folder, intermediate_size=32_768)
    grown = {"gate_proj": (32_768, 64), "up_proj": (32_768, 64), "down_proj": (64, 32_768)}
    change_weights(
        folder,
        lambda weights: weights.update(
            {
                f"model.layers.{layer}.mlp.{name}.weight": torch.randn(shape, dtype=torch.float16)
                for layer in range(2)
                for name, shape in grown.items()
            }
        ),
    )
    hub.folders[COMMIT] = folder
    hub.breaks = {"model.safetensors": 1}
    result = surgery("convert", REPOSITORY, "out.gguf", env=environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert hub.ranges == [f"bytes={10 * 2**20}-"]
    local = surgery("convert", folder, "local.gguf")
    assert local.returncode == 0
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(tmp_path / "local.gguf")


def test_no_such_repository_or_revision(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    missing = refused(surgery("operate", "some-org/typo", "-o", "out.gguf", env=env), tmp_path)
    assert "some-org/typo: neither a file or folder here nor a model at the hub" in missing
    revision = refused(surgery("convert", f"{REPOSITORY}@v9", "out.gguf", env=env), tmp_path)
    assert f"the hub has {REPOSITORY}, but no such revision" in revision


def test_repositories_without_a_checkpoint(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    env = environment(hub, tmp_path)
    for path in hub.folders[COMMIT].glob("*.safetensors"):
        path.unlink()
    (hub.folders[COMMIT] / "model.safetensors.index.json").unlink()
    (hub.folders[COMMIT] / "pytorch_model.bin").unlink()
    weightless = refused(surgery("convert", REPOSITORY, "out.gguf", env=env), tmp_path)
    assert f"{REPOSITORY}: has neither model.safetensors nor pytorch_model.bin" in weightless
    (tmp_path / "ggufs").mkdir()
    (tmp_path / "ggufs" / "model.Q4_0.gguf").write_bytes(b"GGUF")
    hub.folders[OLD_COMMIT] = tmp_path / "ggufs"
    ggufs = refused(surgery("convert", f"{REPOSITORY}@v1.0", "out.gguf", env=env), tmp_path)
    assert (
        "has no config.json, so it is not a checkpoint; name one of its GGUF files: some-org/tiny-model/model.Q4_0.gguf"
        in ggufs
    )


def test_gated_repositories_need_the_token(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    hub.gated, hub.token = {REPOSITORY}, "hf_right"
    env = environment(hub, tmp_path)
    for token in ({}, {"HF_TOKEN": "hf_wrong"}):
        error = refused(surgery("convert", REPOSITORY, "out.gguf", env=env | token), tmp_path)
        assert f"access is restricted; accept its terms at {hub.url}/{REPOSITORY}, then run: hf auth login" in error
    right = surgery("convert", REPOSITORY, "out.gguf", env=env | {"HF_TOKEN": hub.token})
    assert right.returncode == 0, right.stderr


def test_no_network_and_a_failing_hub(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = closed.getsockname()[1]
        env = environment(hub, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}")
        error = refused(surgery("convert", REPOSITORY, "out.gguf", env=env), tmp_path)
    assert f"the hub at http://127.0.0.1:{port} cannot be reached" in error
    offline = surgery("convert", REPOSITORY, "out.gguf", env=environment(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert "is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it" in refused(offline, tmp_path)
    hub.failing = True
    failing = refused(surgery("convert", REPOSITORY, "out.gguf", env=environment(hub, tmp_path)), tmp_path)
    assert "the hub answered with error 500" in failing


def test_a_full_disk(hub: SmallHub, surgery: SurgeryProcess, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: it fails in the same place, in the middle of a file."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    result = surgery("convert", REPOSITORY, "out.gguf", env=environment(hub, tmp_path), preexec_fn=limit)
    assert "no space left in the hub's cache" in refused(result, tmp_path)


def test_a_local_folder_comes_before_the_hub(
    hub: SmallHub, surgery: SurgeryProcess, checkpoint: MakeFolder, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("qwen2"), tmp_path / "some-org" / "tiny-model")
    result = surgery("convert", REPOSITORY, "out.gguf", env=environment(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert open_gguf(tmp_path / "out.gguf").architecture == "qwen2"
    assert hub.requests == []
