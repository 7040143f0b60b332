"""Load a model, make a context for it, tokenise, decode."""

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from native.abilities import abilities
from native.errors import NativeError, TextError
from native.library import ALIGNMENT, file_alignment, ggml_base, initialise, native_log

SURELY_FITTING = 2**16  # tokens of a context
SMALL_CONTEXTS = (8192, 16384)  # more than the windows that some caches end at
LONGEST_TEXT = 2**31 - 1  # bytes; llama_tokenize counts in 32 bits
USUAL_PIECE = 256  # bytes that a token spells, at most, but for rare ones
MOST_THREADS = 512  # GGML_MAX_N_THREADS of ggml.h; more crash it


def default_threads() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ggml_type(name: str) -> int:
    """The number of a ggml type from its name in any case, such as `q8_0`. Raises NativeError for an unknown one."""
    for number in range(llama_cpp.GGML_TYPE_COUNT):
        if (ggml_base().ggml_type_name(number) or b"").decode().lower() == name.lower():
            return number
    raise NativeError(f"{name}: llama.cpp has no such type")


@dataclass(frozen=True)
class Model:
    """A loaded language model: its path and llama.cpp's pointers.

    learned_positions: whether `n_ctx_train` is the longest context that it can have
    """

    path: str
    pointer: int
    vocab: int
    learned_positions: bool

    @property
    def n_vocab(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @property
    def n_ctx_train(self) -> int:
        """The context in tokens that it was trained with, as its file says; it may say 0, or anything."""
        return int(llama_cpp.llama_model_n_ctx_train(self.pointer)) % 2**32  # unsigned in the file, signed here

    @property
    def adds_bos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos(self) -> int:
        return int(llama_cpp.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int:
        """The token that ends a text; -1 where the vocabulary has none."""
        return int(llama_cpp.llama_vocab_eos(self.vocab))

    @property
    def branches(self) -> bool:
        """Whether sequences can have a beginning in common, and be cut back to it: a recurrent state is one sequence's
        alone, and all of its tokens have gone into it."""
        return not (llama_cpp.llama_model_is_recurrent(self.pointer) or llama_cpp.llama_model_is_hybrid(self.pointer))

    @property
    def rope(self) -> str:
        """How rotary positions pair a head's dimensions: `norm` (2i, 2i + 1), `neox` (i, i + half) or `none`."""
        return {-1: "none", 0: "norm"}.get(int(llama_cpp.llama_model_rope_type(self.pointer)), "neox")

    def tokenize(self, text: str, *, special: bool, whole: bool = True) -> np.ndarray:
        """Token ids, int32 of shape (n,), with BOS where the vocabulary asks for it, unless it is not a `whole` text.

        `special`: whether the text of a control token stands for that token.
        """
        native_log().doing(self.path, "tokenising a text")
        data = text.encode()
        if len(data) > LONGEST_TEXT:
            raise TextError(f"has {len(data):,} bytes, and llama.cpp takes {LONGEST_TEXT:,}: use a shorter text")
        buffer = np.empty(len(data) + 16, np.int32)
        while True:
            pointer = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), pointer, len(buffer), whole, special)
            if count >= 0:
                return self._known(buffer[:count].copy())
            if -count <= len(buffer):  # not the number of tokens, for which there would have been room
                raise native_log().error(f"{self.path}: llama.cpp could not tokenise the text")
            buffer = np.empty(-count, np.int32)

    def _known(self, tokens: np.ndarray) -> np.ndarray:
        """`tokens`, if the vocabulary has them all: for what it cannot spell, llama.cpp makes up token -1."""
        if ((tokens < 0) | (tokens >= self.n_vocab)).any():
            raise NativeError(
                f"{self.path}: its vocabulary ({self.metadata('tokenizer.ggml.model')}) cannot spell all of the text"
            )
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; nothing for a control token."""
        buffer = ctypes.create_string_buffer(USUAL_PIECE)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if count < 0:  # minus the bytes that it takes
            buffer = ctypes.create_string_buffer(-count)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:count]

    def first_piece(self, token: int) -> bytes:
        """As `piece`, of a text's first token: without the space that some vocabularies put before every text."""
        buffer = ctypes.create_string_buffer(len(self.piece(token)) + 1)
        count = llama_cpp.llama_detokenize(self.vocab, (ctypes.c_int32 * 1)(token), 1, buffer, len(buffer), True, False)
        return buffer.raw[: max(count, 0)]

    def ends_generation(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def metadata(self, key: str) -> str | None:
        """A metadata value as llama.cpp prints it, or None."""
        size = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")


@dataclass(frozen=True)
class ContextOptions:
    """How to run a model. `n_ctx` is in tokens for each of `n_sequences`; `type_k` and `type_v` are KV cache types."""

    n_ctx: int = 512
    n_sequences: int = 1
    n_batch: int = 2048
    threads: int = 0  # 0: every processor
    type_k: str = "f16"
    type_v: str = "f16"
    gpu_layers: int = 0
    flash_attention: bool = True  # where llama.cpp has it; it rounds V to half precision, whatever the cache's type
    shared: bool = False  # one cache of n_ctx tokens for all sequences, which may have tokens in common


@contextmanager
def load_model(path: str, gpu_layers: int = 0) -> Iterator[Model]:
    """Load a GGUF file (or the first part of a split one).

    Raises NativeError with llama.cpp's reason, and for what is no language model: all that is done with a loaded model
    rests on logits, and llama.cpp hands some out whether they were computed or not.
    """
    initialise()
    native_log().doing(path, "loading it")
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    if file_alignment(path) % ALIGNMENT:  # mapped into memory, tensors stand as in the file, and ggml would abort
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    pointer = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not pointer:
        raise native_log().error(f"{path}: llama.cpp cannot load this model")
    try:
        vocab = llama_cpp.llama_model_get_vocab(pointer)
        native_log().doing(path, "decoding a first token")
        can = abilities(path, pointer, vocab, default_threads())
        if can.refusal:
            raise NativeError(f"{path}: {can.refusal}")
        native_log().forget()
        yield Model(path, pointer, vocab, can.learned_positions)
    finally:
        llama_cpp.llama_model_free(pointer)


class Context:
    """A context of a model: its KV cache, and logits after each decode. Make one with `open_context`."""

    def __init__(
        self, model: Model, pointer: int, batch: llama_cpp.llama_batch, n_batch: int, kv_cache_bytes: int
    ) -> None:
        self.model = model
        self.pointer = pointer
        self.kv_cache_bytes = kv_cache_bytes
        self.n_batch = n_batch
        self._batch = batch

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.pointer), True)

    def keep_first(self, count: int) -> int:
        """Forget all but the first `count` tokens of sequence 0; how many are kept.

        None where the memory is a state that cannot be cut back, as in recurrent and hybrid models.
        """
        if llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.pointer), 0, count, -1):
            return count
        self.clear()
        return 0

    def state(self) -> np.ndarray:
        """What sequence 0 has in memory, for `restore`: uint8 (n,)."""
        state = np.empty(llama_cpp.llama_state_seq_get_size(self.pointer, 0), np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return state[: llama_cpp.llama_state_seq_get_data(self.pointer, pointer, len(state), 0)]

    def restore(self, state: np.ndarray) -> None:
        """Forget everything but what `state` holds. Raises NativeError when llama.cpp does not take it."""
        self.clear()
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not llama_cpp.llama_state_seq_set_data(self.pointer, pointer, len(state), 0):
            raise native_log().error(f"{self.model.path}: llama.cpp cannot restore the memory of a context")

    def forget(self, sequence: int) -> None:
        """Forget all tokens of a sequence."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.pointer), sequence, -1, -1)

    def fork(self, source: int, target: int, count: int = -1) -> None:
        """Let sequence `target` begin with the first `count` tokens of `source`, which share a cache; -1: with all."""
        llama_cpp.llama_memory_seq_cp(llama_cpp.llama_get_memory(self.pointer), source, target, 0, count)

    def keep_sequence(self, sequence: int, count: int) -> None:
        """Forget everything but the first `count` tokens of `sequence`, which becomes sequence 0."""
        memory = llama_cpp.llama_get_memory(self.pointer)
        llama_cpp.llama_memory_seq_keep(memory, sequence)
        if sequence:
            self.fork(sequence, 0)
            llama_cpp.llama_memory_seq_keep(memory, 0)
        self.keep_first(count)

    def decode(
        self,
        tokens: Sequence[int] | np.ndarray,
        positions: Sequence[int] | np.ndarray,
        sequences: np.ndarray | Sequence[Sequence[int]],
        outputs: Sequence[bool] | np.ndarray,
    ) -> None:
        """Decode up to n_batch tokens; all arguments have one entry a token, `outputs` says where logits are wanted.

        `sequences`: the sequence of each token, or, where the cache is shared, all sequences that it belongs to.
        """
        batch, n = self._batch, len(tokens)
        if n > self.n_batch:  # llama.cpp's arrays end there
            raise ValueError(f"{n} tokens in a batch of {self.n_batch}")
        np.ctypeslib.as_array(batch.token, (n,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (n,))[:] = positions
        owners = sequences[:, np.newaxis].tolist() if isinstance(sequences, np.ndarray) else sequences
        np.ctypeslib.as_array(batch.n_seq_id, (n,))[:] = [len(owner) for owner in owners]
        np.ctypeslib.as_array(batch.logits, (n,))[:] = outputs
        for i, owner in enumerate(owners):
            for j, sequence in enumerate(owner):
                batch.seq_id[i][j] = sequence
        batch.n_tokens = n
        native_log().doing(self.model.path, "decoding")
        if status := llama_cpp.llama_decode(self.pointer, batch):
            raise native_log().error(f"{self.model.path}: llama.cpp failed to decode (status {status})")

    def logits(self, count: int) -> np.ndarray:
        """The logits of the last decode's `count` outputs, float32 (count, n_vocab): a view, valid until the next."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.pointer), (count, self.model.n_vocab))


def _make_context(model: Model, params: llama_cpp.llama_context_params) -> tuple[int | None, int]:
    """A context, None if llama.cpp refuses, and the bytes of its KV cache, which only the log tells."""
    sizes: list[float] = []

    def note_size(line: str) -> None:
        if match := re.search(r"KV buffer size\s*=\s*([\d.]+) MiB", line):
            sizes.append(float(match[1]))

    native_log().listeners.append(note_size)
    pointer = llama_cpp.llama_init_from_model(model.pointer, params)
    native_log().listeners.remove(note_size)
    return pointer, round(sum(sizes) * 2**20)


def _require_memory(model: Model, params: llama_cpp.llama_context_params) -> None:
    """Raise NativeError for a KV cache that is larger than memory: the system promises it, and then cannot keep it.

    Two small contexts tell how it grows, as caches have many forms.
    """
    wanted = params.n_ctx
    if wanted <= SURELY_FITTING:
        return
    sizes = []
    for params.n_ctx in SMALL_CONTEXTS:
        pointer, size = _make_context(model, params)
        if pointer:
            llama_cpp.llama_free(pointer)
        sizes.append(size)
    params.n_ctx = wanted
    grows = (sizes[1] - sizes[0]) / (SMALL_CONTEXTS[1] - SMALL_CONTEXTS[0])
    needed = sizes[1] + grows * (wanted - SMALL_CONTEXTS[1])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise NativeError(
            f"{model.path}: a context of {wanted:,} tokens takes {needed / 1e9:,.0f} GB for its KV cache alone, and this"
            f" machine has {memory / 1e9:,.0f} GB of memory; ask for a smaller one"
        )


@contextmanager
def open_context(model: Model, options: ContextOptions, observer: Any = None) -> Iterator[Context]:
    """Make a context. Raises NativeError with llama.cpp's reason, such as a KV cache type that does not fit.

    `observer`, a `ggml_backend_sched_eval_callback`, sees every node of the graph as it is computed; flash attention
    is off then, so that the attention probabilities are among them.
    """
    if model.learned_positions and not options.shared and options.n_ctx > model.n_ctx_train:
        raise NativeError(
            f"{model.path}: has learned positions for {model.n_ctx_train} tokens, and {options.n_ctx} are asked for at"
            f" once; use `n_ctx` {model.n_ctx_train} or less"
        )
    native_log().doing(model.path, f"making a context of {options.n_sequences * options.n_ctx} tokens")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = options.n_ctx * (1 if options.shared else options.n_sequences)
    params.kv_unified = options.shared
    params.n_batch = params.n_ubatch = min(options.n_batch, params.n_ctx)
    params.n_ubatch = min(params.n_ubatch, 512)
    params.n_seq_max = options.n_sequences
    params.n_threads = params.n_threads_batch = min(options.threads or default_threads(), MOST_THREADS)
    params.type_k, params.type_v = ggml_type(options.type_k), ggml_type(options.type_v)
    if observer is not None:
        params.cb_eval = observer
    if observer is not None or not options.flash_attention:
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    _require_memory(model, params)
    pointer, cache_bytes = _make_context(model, params)
    if not pointer:
        raise native_log().error(
            f"{model.path}: llama.cpp cannot make a context of {params.n_ctx} tokens"
            f" with KV cache types {options.type_k} and {options.type_v}"
        )
    batch = llama_cpp.llama_batch_init(params.n_batch, 0, options.n_sequences if options.shared else 1)
    try:
        yield Context(model, pointer, batch, params.n_batch, kv_cache_bytes=cache_bytes)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(pointer)
