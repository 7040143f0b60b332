"""Log-likelihoods of endings against plain decoding of as many tokens, and what common beginnings spare."""

import numpy as np

from benchmarks.timing import in_turn, spread
from native.likelihood import ROUND_TOKENS, Continuation, score_continuations
from native.model import ContextOptions, load_model, open_context
from pipeline.inputs.models import EMBEDDED_NAME, resolve_model
from pipeline.inputs.texts import EVALUATION_TEXT, read_text

ITEMS, ENDINGS, CONTEXT, ENDING = 12, 4, 64, 16  # about the sizes of HellaSwag


def run() -> None:
    options = ContextOptions(n_ctx=ROUND_TOKENS, n_batch=ROUND_TOKENS)
    with load_model(str(resolve_model(EMBEDDED_NAME))) as model, open_context(model, options) as context:
        tokens = model.tokenize(read_text(EVALUATION_TEXT).content, special=False)
        size = CONTEXT + ENDINGS * ENDING
        requests = [
            Continuation(item[:CONTEXT], item[CONTEXT + i * ENDING :][:ENDING])
            for item in tokens[: ITEMS * size].reshape(ITEMS, size)
            for i in range(ENDINGS)
        ]
        rounds = list(score_continuations(model, requests, ContextOptions()))
        decoded, saved = sum(r.decoded for r in rounds), sum(r.saved for r in rounds)
        outputs = np.arange(ROUND_TOKENS) < ROUND_TOKENS * len(requests) * ENDING // decoded

        def score() -> None:
            list(score_continuations(model, requests, ContextOptions()))

        def decode() -> None:
            for start in range(0, decoded, ROUND_TOKENS):
                n = min(ROUND_TOKENS, decoded - start)
                context.clear()
                context.decode(tokens[start : start + n], np.arange(n), np.zeros(n, int), outputs[:n])
                context.logits(1)

        mine, plain, ratios = in_turn(score, decode, rounds=3)
    print(
        f"{ITEMS / mine:,.1f} items/s, plain decoding of as many tokens {ITEMS / plain:,.1f}; {spread(ratios)} of its speed"
    )
    print(f"    {decoded:,} tokens decoded, {saved:,} spared by common beginnings")
