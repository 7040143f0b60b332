"""What does not work or differs, and why: an outcome that is no success and not named here makes the run fail."""

import re
from fnmatch import fnmatch
from typing import NamedTuple

from conformance.outcome import Outcome


class Known(NamedTuple):
    """Models and checks by pattern, the state, what the detail says, and the reason for the page."""

    models: str
    checks: str
    state: str
    says: str
    reason: str


KNOWN: list[Known] = [
    Known(
        "mamba*", "*", "refused", "no layer of this mamba2? model has attn_q", "a state space: there is no attention"
    ),
    Known(
        "*",
        "*",
        "refused",
        "is a diffusion model",
        "a diffusion model: it predicts no next token to evaluate or answer by",
    ),
]


class Difference(NamedTuple):
    """Where the converters differ: on which checkpoint, in which key or tensor, what either says.

    In MEANT, whose `reason` is the page's, all but that are patterns, in which only * and ? are not themselves.
    """

    checkpoints: str
    what: str
    ours: str
    theirs: str
    reason: str = ""

    def covers(self, found: "Difference") -> bool:
        """Whether a difference that was found is this one."""
        patterns = [pattern.replace("[", "[[]") for pattern in self[:4]]
        return all(map(fnmatch, found[:4], patterns))

    def __str__(self) -> str:
        return f"{self.what} of {self.checkpoints}: {self.ours}, and {self.theirs} by convert_hf_to_gguf.py"


# transformers is the judge of what changes a number: a test of every checkpoint holds the logits against its own.
MEANT = [
    Difference("*", "general.name", "*", "*", "the folder's or the hub's name as it is; there, it is spelled anew"),
    Difference("*", "general.basename", "absent", "*", "guessed from the name"),
    Difference("*", "general.finetune", "absent", "*", "guessed from the name"),
    Difference("*", "*.rope.freq_base", "10000", "absent", "what llama.cpp takes for an absent one"),
    Difference("*", "tokenizer.ggml.add_?os_token", "False", "absent", "what llama.cpp takes for an absent one"),
    Difference("*", "tokenizer.ggml.add_space_prefix", "True", "absent", "what llama.cpp takes for an absent one"),
    Difference("*", "tokenizer.ggml.unknown_token_id", "0", "absent", "what llama.cpp takes for an absent one"),
    Difference(
        "gemma*", "tokenizer.ggml.add_space_prefix", "True", "False",
        "tokenizer.model is asked; there, it is no for every Gemma, as it is in the published ones",
    ),
    Difference("gemma", "tokenizer.ggml.eot_token_id", "absent", "107", "written there whatever the token is"),
    Difference(
        "gemma2-no-caps", "conversion", "works", "error: required argument is not a float",
        "transformers reads null as no cap; a cap that nothing reaches stands for that",
    ),
    Difference(
        "gemma2-no-windows", "gemma2.attention.sliding_window", "128", "8",
        "layer_types is read: no layer has a window, so it is as long as the context",
    ),
    Difference(
        "gemma3-no-windows", "gemma3.attention.sliding_window", "absent", "8", "layer_types is read: no layer has a window"
    ),
    Difference(
        "gemma3-pattern", "gemma3.attention.sliding_window_pattern", "[False, True, True, False]", "absent",
        "layer_types is read; there, every sixth layer sees everything",
    ),
    Difference(
        "hunyuan", "hunyuan-dense.rope.scaling.*", "absent", "*", "alpha is in the base: there is nothing more to scale"
    ),
    Difference(
        "hunyuan", "hunyuan-dense.context_length", "32768", "262144",
        "max_position_embeddings as it is; there, alpha is taken to mean 262,144",
    ),
    Difference("llama3", "rope_freqs.weight", "the same to 1e-06", "", "computed in float64; there, in float32"),
    Difference(
        "llama-yarn-*", "llama.rope.scaling.attn_factor", "*", "absent",
        "mscale, mscale_all_dim and attention_factor, so that llama.cpp's factor is transformers'",
    ),
    Difference(
        "llama-yarn-attention-factor", "llama.rope.scaling.yarn_attn_factor", "absent", "0.8",
        "llama.cpp reads that key for Grok alone",
    ),
    Difference(
        "ministral3-pictures", "mistral3.rope.scaling.attn_factor", "*", "absent", "mscale; there, it is taken to be 1"
    ),
    Difference(
        "phi3", "phi3.context_length", "64", "128", "as far as the sliding window reaches, which llama.cpp does not compute"
    ),
    Difference("phi3", "tokenizer.ggml.token_type", "2: 3", "2: 4", "what ends a text is a control token in any case"),
    Difference(
        "llama-mha-tied", "tokenizer.ggml.scores", "512 entries", "480 entries",
        "a token for each row of the embeddings, without which llama.cpp loads no file",
    ),
    Difference("llama-mha-tied", "tokenizer.ggml.token*", "512 entries", "480 entries", "as scores"),
    Difference(
        "qwen2", "tokenizer.ggml.tokens", "480: [PAD480]", "480: <|endoftext|>",
        "transformers' class adds it, and no file of the checkpoint has it",
    ),
    Difference("qwen2", "tokenizer.ggml.token_type", "480: 5", "480: 3", "as its text"),
]  # fmt: skip


def reason_for(model: str, check: str, outcome: Outcome) -> str | None:
    """Why an outcome is no success; None where that is not known."""
    for known in KNOWN:
        if (
            fnmatch(model, known.models)
            and fnmatch(check, known.checks)
            and outcome.state == known.state
            and re.search(known.says, outcome.detail)
        ):
            return known.reason
    return None
