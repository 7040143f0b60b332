"""Do other builds of llama.cpp compute latent files as ours does? Likeliest tokens by node-llama-cpp beside ours.

    npm install --prefix node --ignore-scripts node-llama-cpp@3.21.1
    python -m studies.other_runtimes latent.gguf keep.gguf --node node

The package carries its own llama.cpp, compiled; without its scripts it neither downloads nor compiles another. A model
is loaded by both, and each goes on with the same prompts by the likeliest token, on the CPU.
"""

import json
import subprocess
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import click
import numpy as np

from native.generate import SamplingOptions, decode_prompt, sample_tokens
from native.model import ContextOptions, load_model, open_context
from studies.documents import markdown
from studies.measured import Study

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n",
)
TOKENS = 48
PLAIN = ContextOptions(n_ctx=512, flash_attention=False)  # as node-llama-cpp has it, and others round otherwise
GREEDY = SamplingOptions(temperature=0, max_tokens=TOKENS)


@click.command(cls=Study)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--node", required=True, type=click.Path(path_type=Path), help="Where node-llama-cpp is installed.")
def main(models: tuple[Path, ...], node: Path) -> None:
    """Print how many tokens of each answer both agree on, and with which versions."""
    rows, releases = [], set()
    for model in models:
        prompts, ours = own_answers(model)
        release, theirs = other_answers(node, model, prompts)
        releases.add(release)
        agreed = (
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
            for a, b in zip(ours, theirs, strict=True)
        )
        shares = [f"{n} of {max(len(a), len(b))}" for n, a, b in zip(agreed, ours, theirs, strict=True)]
        rows.append([model.name, *shares])
    click.echo(markdown(["tokens alike until the first that differs", *map(repr, PROMPTS)], rows))
    click.echo(f"llama-cpp-python {version('llama-cpp-python')}; llama.cpp {', '.join(sorted(releases))} in {node}")


def own_answers(path: Path) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of each prompt, and what llama-cpp-python's llama.cpp adds, up to TOKENS or the end of the text."""
    prompts, answers = [], []
    with load_model(str(path)) as model, open_context(model, PLAIN) as context:
        for text in PROMPTS:
            context.clear()
            prompt = model.tokenize(text, special=False)
            decode_prompt(context, prompt, np.empty(0, np.int32))
            tokens = sample_tokens(context, len(prompt), TOKENS, GREEDY)
            answers.append(list(takewhile(lambda token: not model.ends_generation(token), tokens)))
            prompts.append(prompt.tolist())
    return prompts, answers


def other_answers(node: Path, path: Path, prompts: list[list[int]]) -> tuple[str, list[list[int]]]:
    """The llama.cpp of node-llama-cpp, and what it adds to each prompt."""
    script = Path(__file__).with_suffix(".mjs")
    command = ["node", str(script), str(node), str(path), json.dumps(prompts), str(TOKENS)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise click.ClickException(f"{path}: node-llama-cpp in {node} could not run it")
    found = json.loads(run.stdout)
    return found["release"], found["answers"]


if __name__ == "__main__":
    main()
