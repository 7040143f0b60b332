"""The page that lists every architecture with what works."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from conformance.checks import ALL_METHODS, CHECKS, CHUNKS, EXACT, MOVED, N_CTX, RANK
from conformance.known import MEANT, reason_for
from conformance.outcome import Outcome

METHODS = " and ".join(f"`{method}`" for method in ALL_METHODS)
INTRODUCTION = f"""# Architectures

Written by `make conformance`, which builds llama.cpp's own programs from the sources of the pinned llama-cpp-python
({{version}}), lets its test `test-llama-archs` write a small random model of every architecture that it can, gives each a
vocabulary of single characters and attention that the output depends on, and asks of each:

| check | what has to be so |
|---|---|
| inspect | the layers and what they are made of are found; layers that are left alone are listed |
| operate, --rank, all | products of every operated tensor with random inputs are those of a plain singular value decomposition at that rank, to 1e-5 of their size; all else keeps its bytes; `all` has `--targets all`, with the methods {METHODS} |
| eval | KL divergence from itself below {EXACT:g} nats; perplexity is llama-perplexity's to 0.1 % ({CHUNKS} chunks of {N_CTX} tokens) |
| eval operated | rank {RANK} costs more than {MOVED:g} nats; KL divergence is llama-perplexity's to 2 % (it keeps logits in 16 bits) |
| calibrate | sums of squares and counts of every weight, experts too, are llama-imatrix's to 0.1 %, both without flash attention (what is computed with it alone, MiniMax M3's indexer, is in neither) |
| inputs, attention | operating on all targets under the metric works, and under `inputs` the error is smaller by that measure |
| Q8_0, Q4_K_M | the bytes are llama-quantize's |
| run | an answer is generated |

"""
NOTES = """
Made of latents (`q_a`, `q_b`, `kv_a`, `k_b`, `v_b`): each matrix is operated on by itself, k_b and v_b, which read the
same latent, as one group. `--targets k` then means k_b, `v` v_b; kv_a, which both are made of, needs both.

Experts have components and ranks each of its own, and statistics of what is routed to it: second moments where there are
at least as many tokens as the expert has inputs, and where those of all experts of the model take at most 34 million
numbers; else the moments of what the layer's experts are given, scaled to the mean squares of what is routed to the one,
and for down, whose inputs are features of the expert's own, their mean squares alone. An expert that no token was routed
to is taken to be given what the layer's are on the whole, and is named. What routes tokens is left alone. The method
`shared-experts` stacks gate and up of all experts of a layer; under a metric an expert then counts by its errors, under
`attention` by the tokens that are routed to it as well. `shared-experts-by-use` has two stacks: the fewest experts that at
least half of the calibration's tokens are routed to, and the others.

What the metric `attention` does not know: where a layer has no keys, values or output projection of its own name (keys
of an earlier layer, k that is v at once, an output in two matrices) all output directions count alike, as under
`inputs`, but the error is still weighed by what it was measured to cost. Where q and k are normalised, an error counts
as a share of what it is an error of; that the norm removes what points along the vector itself is left out.
"""
OTHERS = """
## Beside architectures

| | | |
|---|---|---|
"""
CONVERTER = """
The converter makes of each checkpoint the tensors and keys that llama.cpp's `convert_hf_to_gguf.py` makes, bytes, types
and shapes, but for what is meant; anything else makes the command fail, as does a line here that is no longer so.

| key or tensor | checkpoints | Surgery | llama.cpp's | why |
|---|---|---|---|---|
"""


def write_page(path: Path, results: Mapping[str, Mapping[str, Outcome]], others: Mapping[str, Outcome]) -> None:
    """Write the page as Markdown."""
    shown = [check for check in CHECKS if check != "inspect"]
    lines = [f"| model | attention | {' | '.join(shown)} |", "|" + "---|" * (len(shown) + 2)]
    reasons: dict[str, list[str]] = {}
    for name, outcomes in results.items():
        cells = []
        for check in shown:
            outcome = outcomes[check]
            if outcome.state == "works":
                cells.append("yes")
                continue
            reason = reason_for(name, check, outcome) or outcome.detail
            reasons.setdefault(reason, []).append(f"{name} ({check})")
            cells.append(f"no [{list(reasons).index(reason) + 1}]")
        lines.append(f"| {name} | {outcomes['inspect'].detail} | {' | '.join(cells)} |")
    totals = [f"{check}: {sum(outcomes[check].state == 'works' for outcomes in results.values())}" for check in CHECKS]
    text = INTRODUCTION.format(version=version("llama-cpp-python"))
    text += f"Of {len(results)} models, what works: {', '.join(totals)}.\n\n" + "\n".join(lines) + "\n"
    if reasons:
        text += "\n" + "".join(f"[{number}] {reason}\n\n" for number, reason in enumerate(reasons, 1))
    text += NOTES
    text += OTHERS + "".join(f"| {name} | {outcome.state} | {outcome.detail} |\n" for name, outcome in others.items())
    text += CONVERTER
    for meant in MEANT:
        codes = map(_code, (meant.what, meant.checkpoints, meant.ours, meant.theirs))
        text += f"| {' | '.join(codes)} | {meant.reason} |\n"
    path.write_text(text)


def _code(text: str) -> str:
    """`text` as it is, in a cell of a table."""
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`" if text else ""
