"""`surgery run`: answer a prompt, or chat."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

import click

from native.generate import AnswerStatistics, Chat, SamplingOptions
from native.model import ContextOptions
from pipeline.cli.options import cache_type_options, gpu_layers_option, json_option, model_argument, threads_option
from pipeline.cli.output import counted, echo, print_json
from pipeline.cli.parameters import Number, WholeNumber
from pipeline.conversation import ask, start_conversation
from pipeline.errors import SurgeryError, UsageError
from pipeline.files.models import open_model
from pipeline.visible import visible


@click.command("run")
@model_argument
@click.option("--prompt", help="What to ask; without it, standard input, or a chat if that is a terminal.")
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
)
@click.option("--seed", default=0, show_default=True, type=WholeNumber(0, 2**32 - 1))
@click.option("--max-tokens", default=256, show_default=True, type=WholeNumber(1), help="Tokens an answer may have.")
@click.option(
    "--ctx", default=0, type=WholeNumber(0), help="Context in tokens.  [default: the model's own, at most 4096]"
)
@cache_type_options
@gpu_layers_option
@threads_option
@json_option
def command(
    model: str, prompt: str | None, beside: str | None, temperature: float, top_p: float, seed: int, max_tokens: int, ctx: int,
    cache_type_k: str, cache_type_v: str, gpu_layers: int, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Answer with MODEL in its own chat template, the text streamed as it comes."""
    options = ContextOptions(
        n_ctx=ctx, threads=threads, type_k=cache_type_k, type_v=cache_type_v, gpu_layers=gpu_layers
    )
    sampling = SamplingOptions(temperature, top_p, seed, max_tokens)
    names = [name for name in (model, beside) if name is not None]
    paths = {name: open_model(name).path for name in names}
    if prompt is None and sys.stdin and sys.stdin.isatty():
        if as_json:
            raise UsageError("--json: needs a --prompt, or text on standard input")
        with ExitStack() as stack:
            chat_on_terminal(
                {
                    name: stack.enter_context(closing(start_conversation(paths[name], options, sampling)))
                    for name in names
                }
            )
        return
    message = (prompt if prompt is not None else piped_text()).strip()
    if not message:
        raise UsageError("--prompt: is empty; ask something")
    answers = []
    for name in names:
        with closing(start_conversation(paths[name], options, sampling)) as conversation:
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


def answer(
    name: str,
    conversation: Chat,
    message: str,
    *,
    label: bool,
    quiet: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Stream one answer to the terminal, unless `quiet`; what was said, with its statistics."""
    if label and not quiet:
        click.secho(f"--- {visible(name)}", bold=True)  # noqa: TID251
    pieces: list[str] = []
    for event in ask(conversation, message, stopped):
        if isinstance(event, AnswerStatistics):
            if not quiet:
                print_statistics(event)
            return {"model": name, "text": "".join(pieces), **asdict(event)}
        pieces.append(event)
        if not quiet:
            echo(event, nl=False)
    raise AssertionError("an answer ends with its statistics")


def print_statistics(statistics: AnswerStatistics) -> None:
    prompt_speed = (statistics.prompt_tokens - statistics.cached_tokens) / statistics.prompt_seconds
    speed = statistics.generated_tokens / statistics.generation_seconds
    why = {
        "stop": "; ended by itself",
        "length": "; cut off by --max-tokens",
        "context": "; cut off, the context is full",
        "interrupted": "; stopped",
    }[statistics.finish_reason]
    echo()
    echo(
        f"[prompt {counted(statistics.prompt_tokens, 'token')}, {prompt_speed:,.0f}/s; answer {counted(statistics.generated_tokens, 'token')}, {speed:,.0f}/s{why}]\n",
        err=True,
    )


def chat_on_terminal(conversations: dict[str, Chat]) -> None:
    """Ask and answer until an empty line, the end of input, or Ctrl-C at the prompt; during an answer that ends it."""
    echo("Ask something; Ctrl-C stops an answer, an empty line or Ctrl-D ends.", err=True)
    while True:
        try:
            message = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            echo()
            return
        if not message:
            return
        with first_interrupt() as interrupted:
            for name, conversation in conversations.items():
                if not interrupted.is_set():
                    answer(name, conversation, message, label=len(conversations) > 1, stopped=interrupted.is_set)


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that an answer can end in order; a second one is as always."""
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        interrupted.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
