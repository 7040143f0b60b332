"""A checkpoint with one key/value head, as a latent with all of its cache, computes what transformers does, up to 8,191.

But for frequencies that `deepseek2` cannot be told: how far those are off is bounded, and transformers is given them, too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from pipeline.gguf_file.reader import open_gguf
from pipeline.latent.plan import LatentPlan
from pipeline.latent.source import require_convertible
from tests.convert.checkpoints import LLAMA3_ROPE, YARN, reference_model, save_checkpoint
from tests.test_latent_sources import STARTS, converted, late_logits, late_tokens

LLAMA_3_2 = LLAMA3_ROPE | {"rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192}
# name -> model class, what differs from SIZES, tokenizer
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama 3.2": ("Llama", {"head_dim": 64, "rope_parameters": LLAMA_3_2}, "llama-bpe"),
    "yarn": ("Llama", {"rope_parameters": YARN}, "llama-bpe"),
    "layers without rope": ("SmolLM3", {"num_hidden_layers": 4, "pad_token_id": None}, "llama-bpe"),
    "fused and partly rotated": (
        "Phi3",
        {
            "pad_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0, "partial_rotary_factor": 0.75},
        },
        "phi-4",
    ),
}


def logits_of_transformers(model: Any) -> np.ndarray:
    """As `late_logits`, of a checkpoint's model."""
    ids: list[int] = []
    positions: list[int] = []
    for start in STARTS:
        joined = [1] if start else []
        ids += [*joined, *late_tokens(start).tolist()]
        positions += range(start - len(joined), start + 8)
    asked = np.array([position + 1 not in STARTS for position in positions])
    seen = np.tril(np.ones((len(ids), len(ids)), bool))
    seen[~asked] = np.eye(len(ids), dtype=bool)[~asked]  # what joins a run to those before it was alone itself
    mask = torch.from_numpy(np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32))[None, None]
    with torch.no_grad():
        logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=mask).logits[0]
    return np.asarray(logits.numpy()[asked].reshape(len(STARTS), 8, -1))


@pytest.mark.parametrize("name", CASES)
def test_a_latent_with_all_of_its_cache_is_the_checkpoint(name: str, english: Path, tmp_path: Path) -> None:
    family, changes, tokenizer = CASES[name]
    folder = save_checkpoint(tmp_path / "checkpoint", family, changes | {"num_key_value_heads": 1}, tokenizer)
    write_model(open_checkpoint(folder), tmp_path / "source.gguf")
    latent, _ = converted(tmp_path / "source.gguf", english, LatentPlan(cache=1, outtype="f32"))
    model = reference_model(folder)
    turning = model.model.rotary_emb.inv_freq
    slots = require_convertible(open_gguf(tmp_path / "source.gguf")).slots
    offered = slots.rope.frequencies()[np.argsort(np.array(slots.holds), kind="stable")[slots.empty :]]
    met = name != "llama 3.2"
    assert np.abs(offered - turning.numpy()).max() < (1e-7 if met else 2.5e-5)
    turning.copy_(torch.from_numpy(offered))  # all else is the same, but what the fit makes up for where they are off
    expected = logits_of_transformers(model)
    assert np.abs(late_logits(latent) - expected).max() < (1e-3 if met else 0.1) * expected.std()
