"""What a loaded model can do: whether it predicts next tokens at all, and for how many positions.

llama.cpp decodes with any model and hands out a buffer for logits, written or not: an encoder's is left as it was.
So the model is asked: by llama.cpp's own questions, then by decoding one token and watching what is computed.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from native.library import GGMLTensor, native_log, op_number

NOT_WRITTEN = 0x7FC5A17E  # a NaN of this program's own, to see whether logits are written
POSITIONS_TENSOR = b"position_embd.weight"
POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}


@dataclass(frozen=True)
class Abilities:
    """`refusal`: why it is no language model, None for one; `learned_positions`: whether no context can be longer
    than the one it was trained with, since its positions are rows of a matrix."""

    refusal: str | None
    learned_positions: bool = False


def abilities(path: str, model: int, vocab: int, threads: int) -> Abilities:
    """What the model behind these llama.cpp pointers can do. Raises NativeError when it cannot decode a token.

    `path` names it in messages.
    """
    if llama_cpp.llama_vocab_type(vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        return Abilities("has no tokenizer (tokenizer.ggml.model), so no text can be given to it")
    if not llama_cpp.llama_model_has_decoder(model):
        return Abilities("is an encoder: it computes no logits, and predicts no next token")
    if llama_cpp.llama_model_has_encoder(model):
        return Abilities(
            "is an encoder with a decoder (such as T5): it answers an input, and is no plain language model"
        )
    if llama_cpp.llama_model_cls_label(model, 0):
        return Abilities("is a classifier, whose output are labels: it predicts no next token")
    if llama_cpp.llama_model_is_diffusion(model):
        return Abilities("is a diffusion model: it fills in masked tokens, and predicts no next one")
    return _watched(path, model, threads)


def _watched(path: str, model: int, threads: int) -> Abilities:
    """What one token, decoded in a context of its own, shows."""
    learned_positions = False
    get_rows = op_number("GET_ROWS")

    def watch(address: int, ask: bool, user_data: Any) -> bool:
        nonlocal learned_positions
        node = GGMLTensor.from_address(address)
        if node.op == get_rows and GGMLTensor.from_address(node.src[0]).name == POSITIONS_TENSOR:
            learned_positions = True
        return False  # no node is wanted

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_seq_max = 1
    params.n_threads = params.n_threads_batch = threads
    params.cb_eval = callback = llama_cpp.ggml_backend_sched_eval_callback(watch)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise native_log().error(f"{path}: llama.cpp cannot make a context for it")
    try:
        if not llama_cpp.llama_get_causal_attn(context) or llama_cpp.llama_get_memory(context) is None:
            return Abilities(
                "attends to what comes later as well (an encoder, such as BERT): it predicts no next token"
            )
        if (pooling := llama_cpp.llama_pooling_type(context)) > 0:
            return Abilities(
                f"is an embedding model or reranker (pooling type {POOLING.get(pooling, pooling)}): it predicts no next token"
            )
        sentinel = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (1,)).view(np.uint32)
        sentinel[0] = NOT_WRITTEN
        token = (ctypes.c_int32 * 1)(max(0, llama_cpp.llama_vocab_bos(llama_cpp.llama_model_get_vocab(model))))
        if status := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)):
            raise native_log().error(f"{path}: llama.cpp failed to decode a token (status {status})")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (1,)).view(np.uint32)
        if logits[0] == NOT_WRITTEN:
            return Abilities(
                "computes no logits (it is an encoder, or lacks an output matrix): it predicts no next token"
            )
        return Abilities(None, learned_positions)
    finally:
        llama_cpp.llama_free(context)
        del callback
