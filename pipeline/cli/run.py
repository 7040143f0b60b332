"""`surgery run`: answer a prompt, or chat."""

import sys
from contextlib import AbstractContextManager, ExitStack, closing

import click

from native.generate import Chat, SamplingOptions
from native.model import ContextOptions
from pipeline.cli.answering import answer
from pipeline.cli.chat import chat_on_terminal
from pipeline.cli.options import (
    cache_type_options,
    gpu_layers_option,
    json_option,
    model_argument,
    refuse_idle,
    threads_option,
)
from pipeline.cli.output import print_json
from pipeline.cli.parameters import Number, WholeNumber
from pipeline.cli.sections import SurgeryCommand
from pipeline.conversation import start_conversation
from pipeline.errors import SurgeryError, UsageError
from pipeline.inputs.models import open_model

LARGEST_SEED = 2**32 - 2  # llama.cpp takes the next one to mean any


@click.command(
    "run",
    cls=SurgeryCommand,
    sections={
        "What is asked": "prompt system plain beside",
        "Sampling": "temperature top_p seed max_tokens",
        "How the model runs": "ctx cache_type_k cache_type_v gpu_layers threads",
    },
)
@model_argument
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompt", help="What to ask; without it, standard input, or a chat if that is a terminal.")
@click.option("--system", metavar="TEXT", help="What the model is told before all else, as a system message.")
@click.option("--plain", is_flag=True, help="Give it the text as it is, without the model's chat template.")
@click.option("--beside", metavar="OTHER", help="Answer the same prompt with this model too, one after the other.")
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    type=Number("a number of at least 0, such as 0.8", 0),
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--top-p",
    default=0.95,
    show_default=True,
    type=Number("a share above 0 and at most 1, such as 0.95", 0, 1, above=True),
    help="Choose among the likeliest tokens that have this share of the probability.",
)
@click.option(
    "--seed", default=0, show_default=True, type=WholeNumber(0, LARGEST_SEED), help="Another seed, another answer."
)
@click.option("--max-tokens", default=256, show_default=True, type=WholeNumber(1), help="Tokens of an answer.")
@click.option(
    "--ctx", default=0, type=WholeNumber(0), help="Context in tokens.  [default: the model's own, at most 4096]"
)
@cache_type_options
@gpu_layers_option
@threads_option
@json_option
def command(
    model: str, words: tuple[str, ...], prompt: str | None, system: str | None, plain: bool, beside: str | None, temperature: float, top_p: float, seed: int, max_tokens: int, ctx: int,
    cache_type_k: str, cache_type_v: str, gpu_layers: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Answer with MODEL in its own chat template, the text streamed as it comes."""
    options = ContextOptions(
        n_ctx=ctx, threads=threads, type_k=cache_type_k, type_v=cache_type_v, gpu_layers=gpu_layers
    )
    if temperature == 0:
        refuse_idle(("seed", "top_p"), "nothing is drawn at random with --temperature 0; leave one of them out")
    sampling = SamplingOptions(temperature, top_p, seed, max_tokens)
    if words and prompt is not None:
        raise UsageError("--prompt: was given, and words after MODEL as well; give one of them")
    prompt = " ".join(words) if words else prompt
    names = [name for name in (model, beside) if name is not None]
    paths = {name: open_model(name).path for name in names}

    def started(name: str) -> AbstractContextManager[Chat]:
        return closing(start_conversation(paths[name], options, sampling, system=system, plain=plain))

    if prompt is None and sys.stdin and sys.stdin.isatty():
        if as_json:
            raise UsageError("--json: needs a prompt, or text on standard input")
        with ExitStack() as stack:
            chat_on_terminal({name: stack.enter_context(started(name)) for name in names})
        return
    message = (prompt if prompt is not None else piped_text()).strip()
    if not message:
        where = "--prompt" if prompt is not None else "standard input"
        raise UsageError(f"{where}: is empty; ask something")
    answers = []
    for name in names:
        with started(name) as conversation:
            answers.append(answer(name, conversation, message, label=bool(beside), quiet=as_json))
    if as_json:
        print_json({"prompt": message, "answers": answers})


def piped_text() -> str:
    """What stands on standard input; nothing where that is closed. Raises SurgeryError when it is not UTF-8."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise SurgeryError(f"standard input: not UTF-8 text (byte {error.start}); convert it first") from None
