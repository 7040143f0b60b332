"""llama.cpp on the converted file computes what transformers computes on the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import transformers

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from pipeline.gguf_file.reader import open_gguf
from pipeline.inputs.models import embedded_model
from tests.convert.checkpoints import (
    CHECKPOINTS,
    PICTURES,
    llama_cpp_greedy,
    llama_cpp_ids,
    llama_cpp_logits,
    reference_greedy,
    reference_logits,
    reference_model,
)
from tests.convert.conftest import MakeFolder
from tests.convert.real_model import save_real_checkpoint
from tests.convert.tokenizers import NASTY_TEXT

TOLERANCE = 1e-3


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_greedy_continuation_equal_those_of_transformers(
    name: str, checkpoint: MakeFolder, converted: MakeFolder
) -> None:
    model = reference_model(checkpoint(name))
    ids = np.random.default_rng(1).integers(3, 480, 64).tolist()
    expected = reference_logits(model, ids)
    np.testing.assert_allclose(llama_cpp_logits(converted(name), ids), expected, atol=TOLERANCE, rtol=0)
    assert np.abs(expected).max() > 0.3, "logits this small would be close whatever was wrong"
    assert llama_cpp_greedy(converted(name), ids[:16], 16) == reference_greedy(model, ids[:16], 16)


def test_the_real_smollm2_survives_the_round_trip(tmp_path: Path) -> None:
    save_real_checkpoint(tmp_path)
    output = tmp_path / "smollm2.gguf"
    write_model(open_checkpoint(tmp_path), output)
    before, after = open_gguf(embedded_model()), open_gguf(output)
    for name in ("token_embd.weight", "blk.7.attn_q.weight", "blk.7.attn_k.weight", "blk.29.ffn_down.weight"):
        np.testing.assert_array_equal(after.read(name), before.read(name))
    assert set(after.tensors) == set(before.tensors)
    same = ("llama.", "tokenizer.ggml.", "tokenizer.chat_template")
    for key in (key for key in before.metadata if key.startswith(same) and key != "tokenizer.ggml.add_space_prefix"):
        assert (after.get(key), after.metadata[key].kind) == (before.get(key), before.metadata[key].kind), key
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode(NASTY_TEXT)[:64]
    assert llama_cpp_ids(output, NASTY_TEXT)[:64] == ids
    model = reference_model(tmp_path)
    expected = reference_logits(model, ids)
    np.testing.assert_allclose(llama_cpp_logits(output, ids), expected, atol=TOLERANCE, rtol=0)
    prompt = tokenizer.encode("The capital of France is")
    assert llama_cpp_greedy(output, prompt, 8) == reference_greedy(model, prompt, 8)


def test_only_the_text_part_of_a_model_that_sees_pictures(checkpoint: MakeFolder) -> None:
    for name in PICTURES:
        assert "only the text part is converted" in open_checkpoint(checkpoint(name)).notes[0]
