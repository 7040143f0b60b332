"""`surgery eval` against a plain loop over llama.cpp's decode with the same batches, on the embedded model."""

import numpy as np

from benchmarks.timing import in_turn, spread
from native.evaluate import BATCH_TOKENS, decode_columns, score_chunks
from native.model import ContextOptions, load_model, open_context
from pipeline.files.models import EMBEDDED_NAME, resolve_model
from pipeline.files.texts import EVALUATION_TEXT, read_text

N_CTX, CHUNKS = 512, 8


def run() -> None:
    together = BATCH_TOKENS // N_CTX
    options = ContextOptions(n_ctx=N_CTX, n_sequences=together, n_batch=BATCH_TOKENS)
    with load_model(str(resolve_model(EMBEDDED_NAME))) as model, open_context(model, options) as context:
        tokens = model.tokenize(read_text(EVALUATION_TEXT).content, special=False)
        grid = tokens[: CHUNKS * N_CTX].reshape(CHUNKS, N_CTX)
        positions = np.arange(N_CTX)

        def evaluate() -> None:
            for start in range(0, CHUNKS, together):
                score_chunks([context], grid[start : start + together])

        def decode() -> None:
            for start in range(0, CHUNKS, together):
                context.clear()
                decode_columns(context, grid[start : start + together], positions, positions >= N_CTX // 2)

        mine, plain, ratios = in_turn(evaluate, decode, rounds=3)
    print(f"{grid.size / mine:,.0f} tokens/s, plain decoding {grid.size / plain:,.0f}; {spread(ratios)} of its speed")
