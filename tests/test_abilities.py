"""What is no language model is refused by its name, wherever logits are wanted; all others are not."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from native.errors import NativeError
from native.model import ContextOptions, load_model, open_context
from pipeline.calibration.calibrate import calibrate
from pipeline.cli.main import cli
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.texts import read_text
from tests.tiny_architectures import LEARNED_POSITIONS, write_bert, write_gpt2, write_lfm2, write_t5
from tests.tiny_model import TinyModel, tensors_of, write_tiny_model

UINT, BOOL, STRING, ARRAY = (getattr(gguf.GGUFValueType, name) for name in ("UINT32", "BOOL", "STRING", "ARRAY"))


@pytest.mark.parametrize("metadata", [{}, {"attention.causal": (True, BOOL)}, {"pooling_type": (1, UINT)}])
def test_an_encoder_is_refused_whatever_its_file_says(tmp_path: Path, metadata: dict[str, object]) -> None:
    path = write_bert(tmp_path / "bert.gguf", **metadata)  # type: ignore[arg-type]
    with pytest.raises(NativeError, match=r"bert.gguf: .* predicts no next token"), load_model(str(path)):
        pass


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.pooling_type": (3, UINT)}, r"embedding model or reranker \(pooling type last\)"),
        ({"llama.pooling_type": (4, UINT)}, r"embedding model or reranker \(pooling type rank\)"),
        ({"llama.classifier.output_labels": (["yes", "no"], ARRAY)}, "is a classifier"),
        ({"llama.attention.causal": (False, BOOL)}, "attends to what comes later"),
        ({"tokenizer.ggml.model": ("no_vocab", STRING), "llama.vocab_size": (257, UINT)}, "has no tokenizer"),
    ],
)
def test_what_a_file_says_of_itself_is_heard(
    tmp_path: Path, metadata: dict[str, tuple[object, gguf.GGUFValueType]], message: str
) -> None:
    path = write_tiny_model(tmp_path / "odd.gguf", metadata=metadata)
    with pytest.raises(NativeError, match=f"odd.gguf: .*{message}"), load_model(str(path)):
        pass


@pytest.mark.parametrize(
    ("decoder", "message"), [(False, "is an encoder: it computes no logits"), (True, "is an encoder with a decoder")]
)
def test_encoders_of_llama_cpps_own_naming(tmp_path: Path, decoder: bool, message: str) -> None:
    path = write_t5(tmp_path / "t5.gguf", decoder=decoder)
    with pytest.raises(NativeError, match=rf"t5.gguf: {message}"), load_model(str(path)):
        pass


def test_a_diffusion_model(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "dream.gguf", TinyModel("dream", bias=True))
    with pytest.raises(NativeError, match=r"dream.gguf: is a diffusion model"), load_model(str(path)):
        pass


def test_an_encoder_that_only_its_logits_give_away(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "embed.gguf", TinyModel("llama-embed"))
    with pytest.raises(NativeError, match=r"embed.gguf: computes no logits"), load_model(str(path)):
        pass


def test_language_models_pass_be_they_hybrid_or_broken(tiny: Path, tmp_path: Path) -> None:
    silent = tensors_of(TinyModel()) | {"output.weight": np.zeros((257, 64), np.float32)}
    for path in (tiny, write_lfm2(tmp_path / "lfm2.gguf"), write_tiny_model(tmp_path / "silent.gguf", tensors=silent)):
        with load_model(str(path)) as model:
            assert not model.learned_positions


def test_statistics_are_taken_on_chunks_that_learned_positions_allow(
    tmp_path: Path, english: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    model = open_gguf(write_gpt2(tmp_path / "gpt2.gguf"))
    taken = calibrate(model, read_text(str(english)), chunks=2)
    assert (taken.origin.chunk_size, taken.origin.chunk_count) == (LEARNED_POSITIONS, 2)
    assert taken.probed


def test_a_vocabulary_that_cannot_spell_the_text(tmp_path: Path) -> None:
    """RWKV's writes bytes as escapes, which this one lacks: a blank is no token of it."""
    path = write_tiny_model(tmp_path / "rwkv.gguf", metadata={"tokenizer.ggml.model": ("rwkv", STRING)})
    with load_model(str(path)) as model:
        assert len(model.tokenize("abc", special=False)) == 3
        with pytest.raises(NativeError, match=r"rwkv.gguf: its vocabulary \(rwkv\) cannot spell all of the text"):
            model.tokenize("a b", special=False)


def test_learned_positions_bound_the_context(tmp_path: Path) -> None:
    with load_model(str(write_gpt2(tmp_path / "gpt2.gguf"))) as model:
        assert model.learned_positions
        with open_context(model, ContextOptions(n_ctx=LEARNED_POSITIONS)):
            pass
        with (
            pytest.raises(NativeError, match=r"gpt2.gguf: has learned positions for 256 tokens, and 257 are asked for"),
            open_context(model, ContextOptions(n_ctx=LEARNED_POSITIONS + 1)),
        ):
            pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (None, "holds a vocabulary and no weights"),
        ("adapter", "holds no model but what calls itself 'adapter'"),
        ("imatrix", "calls itself 'imatrix'"),
    ],
)
def test_gguf_files_that_hold_no_model(tmp_path: Path, kind: str | None, message: str) -> None:
    metadata = {} if kind is None else {"general.type": (kind, STRING)}
    path = write_tiny_model(tmp_path / "other.gguf", tensors=None if kind else {}, metadata=metadata)
    for command in ("eval {}", "quantize {} q.gguf Q8_0", "operate {} -o o.gguf", "run {} --prompt x"):
        result = CliRunner().invoke(cli, command.format(path).split())
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert f"{path}: " in result.stderr
        assert message in result.stderr
    assert CliRunner().invoke(cli, ["inspect", str(path)]).exit_code == 0
    assert not list(Path().glob("[qo].gguf"))
