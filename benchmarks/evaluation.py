"""`surgery eval` against a plain loop over llama.cpp's decode of the same chunks, on the embedded model."""

import numpy as np

from benchmarks.timing import in_turn, spread
from native.evaluate import TextChunks, decode_columns, score_texts
from native.model import ContextOptions, load_model, open_context
from pipeline.inputs.models import EMBEDDED_NAME, resolve_model
from pipeline.inputs.texts import EVALUATION_TEXT, read_text

N_CTX, CHUNKS = 512, 8


def run() -> None:
    options, text = ContextOptions(n_ctx=N_CTX, n_batch=N_CTX), read_text(EVALUATION_TEXT).content
    with load_model(str(resolve_model(EMBEDDED_NAME))) as model, open_context(model, options) as context:
        tokens = model.tokenize(text, special=False)
        grid = tokens[: CHUNKS * N_CTX].reshape(CHUNKS, 1, N_CTX)
        positions = np.arange(N_CTX)

        def evaluate() -> None:
            list(score_texts([(model, options)], [TextChunks(text, CHUNKS)]))

        def decode() -> None:
            for chunk in grid:
                context.clear()
                decode_columns(context, chunk, positions, positions >= N_CTX // 2)
                context.logits(1)  # waits for the decode

        mine, plain, ratios = in_turn(evaluate, decode, rounds=3)
    print(f"{grid.size / mine:,.0f} tokens/s, plain decoding {grid.size / plain:,.0f}; {spread(ratios)} of its speed")
