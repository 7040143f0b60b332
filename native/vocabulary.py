"""What llama.cpp makes of a file's vocabulary and shapes, the weights left where they are."""

import ctypes
from dataclasses import dataclass

import llama_cpp
import numpy as np

from native.library import initialise, native_log

# Texts that llama.cpp takes for the end of generation wherever they are tokens (src/llama-vocab.cpp, special_eog_ids).
ENDS_BY_NAME = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
    }
)  # fmt: skip


@dataclass(frozen=True)
class SeenVocabulary:
    """What llama.cpp says of a vocabulary. `ids`: those of each text, without BOS and EOS; -1 for no such token."""

    size: int
    bos: int
    eos: int
    ends: frozenset[int]
    ids: list[list[int]]


def see_vocabulary(path: str, texts: list[str]) -> SeenVocabulary:
    """Load the file at `path` as llama.cpp would to run it, but for the weights' values, and tokenise `texts`.

    Control tokens in the texts are taken for those. Raises NativeError when llama.cpp cannot load it: a tensor is
    missing, unknown or of another shape than the metadata says, or the vocabulary is not as it should be.
    """
    initialise()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.load_mode, params.no_alloc = 0, llama_cpp.LLAMA_LOAD_MODE_NONE, True
    pointer = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not pointer:
        raise native_log().error("llama.cpp cannot load it")
    _check_context(pointer)
    vocab = llama_cpp.llama_model_get_vocab(pointer)
    size = int(llama_cpp.llama_vocab_n_tokens(vocab))
    seen = SeenVocabulary(
        size,
        int(llama_cpp.llama_vocab_bos(vocab)),
        int(llama_cpp.llama_vocab_eos(vocab)),
        frozenset(token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocab, token)),
        [_plain_ids(vocab, text) for text in texts],
    )
    llama_cpp.llama_model_free(pointer)
    return seen


def _check_context(model: int) -> None:
    """Plan the memory of a small context, as running the model would begin with. Raises NativeError if that fails."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 32
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise native_log().error("llama.cpp cannot run it")
    llama_cpp.llama_free(context)


def _plain_ids(vocab: int, text: str) -> list[int]:
    data = text.encode()
    buffer = np.empty(2 * len(data) + 16, np.int32)
    pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    count = llama_cpp.llama_tokenize(vocab, data, len(data), pointer, len(buffer), False, True)
    return [int(token) for token in buffer[: max(count, 0)]]
