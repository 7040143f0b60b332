"""Moments from llama.cpp's callback against what hooks in transformers see of the same tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from native.model import load_model
from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from tests.captured import TEXT, capture, relative
from tests.convert.checkpoints import reference_model
from tests.convert.conftest import MakeFolder
from tests.convert.real_model import save_real_checkpoint

N_CTX = 64


def hooked_moments(model: Any, tokens: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each layer, sum x x^T of its query projection's inputs: over all tokens, and weighted by attention received."""
    inputs: dict[int, np.ndarray] = {}
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(
            lambda module, arguments, number=number: inputs.update({number: arguments[0][0].double().numpy()})
        )
    with torch.no_grad():
        attentions = model(torch.tensor([tokens]), output_attentions=True).attentions
    result = []
    for number, probabilities in enumerate(attentions):
        x, mass = inputs[number], probabilities[0].double().mean(dim=0).sum(dim=0).numpy()
        result.append((x.T @ x, (x * mass[:, None]).T @ x))
    return result


def assert_same_moments(path: Path, folder: Path) -> None:
    with load_model(str(path)) as loaded:
        tokens = loaded.tokenize(TEXT, special=False)[:N_CTX].copy()
        if loaded.adds_bos:
            tokens[0] = loaded.bos
    _, [part] = capture(path, TEXT, n_ctx=N_CTX, chunks=1)
    expected = hooked_moments(reference_model(folder), tokens.tolist())
    assert len(part.inputs) == len(expected)
    for layer, (moment, received) in enumerate(expected):
        assert relative(part.inputs[layer]["attn_input"]["second_moment"], moment) < 1e-3, layer
        assert relative(part.inputs[layer]["attn_input"]["received"], received) < 1e-3, layer


@pytest.mark.parametrize("name", ["llama", "llama-head-dim", "qwen2"])
def test_moments_of_a_random_model(name: str, checkpoint: MakeFolder, converted: MakeFolder) -> None:
    assert_same_moments(converted(name), checkpoint(name))


def test_moments_of_the_real_model(tmp_path: Path) -> None:
    save_real_checkpoint(tmp_path)
    write_model(open_checkpoint(tmp_path), tmp_path / "smollm2.gguf")
    assert_same_moments(tmp_path / "smollm2.gguf", tmp_path)
