"""A conversation as a model's chat template writes it.

A template is a program by whoever made the file. It runs in Jinja's sandbox, as in transformers, and here within
limits of time and memory, so that one that does not end is an error like one that raises.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import jinja2
import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from native.errors import NativeError
from native.library import native_log
from native.model import Model

KEY = "tokenizer.chat_template"
SECONDS = 5.0
MEMORY = 2**30  # bytes more than the process has
LONGEST_REASON = 300

Message = dict[str, str]


class ChatTemplateError(NativeError):
    """A chat template fails, whatever it is given, or on this conversation."""


def render_chat(model: Model, messages: Sequence[Message], *, plain: bool = False, answering: bool = True) -> str:
    """The conversation as the model's chat template writes it; plain text if `plain`, or for a model that has none.

    `answering`: an answer comes next; otherwise the last message goes on, and what closes it is left out.
    Raises ChatTemplateError when the template cannot be compiled, raises, does not end in time, or leaves nothing.
    """
    template = None if plain else model.metadata(KEY)
    if template is None:
        return "\n".join(message["content"] for message in messages)
    native_log().doing(model.path, f"rendering its chat template ({KEY})")
    eos, bos = _token_text(model, "eos"), "" if model.adds_bos else _token_text(model, "bos")
    try:
        with _limits():
            formatter = Jinja2ChatFormatter(template, eos_token=eos, bos_token=bos, add_generation_prompt=answering)
            text = str(formatter(messages=list(messages)).prompt)  # type: ignore[arg-type]  # plain ones are what it takes
    except (Exception, _OutOfTime) as error:  # it is a program: anything can come of it
        raise _failure(model, f"fails: {_reason(error)}") from None
    if not text.strip():
        raise _failure(model, "renders nothing of the conversation")
    last = "" if answering else messages[-1]["content"].strip()
    return text[: text.rindex(last) + len(last)] if last and last in text else text


def _failure(model: Model, what: str) -> ChatTemplateError:
    return ChatTemplateError(f"{model.path}: its chat template ({KEY}) {what}")


class _OutOfTime(BaseException):
    """No Exception: Jinja's optimiser takes all of those for a sign that it should not have tried, and goes on."""


def _reason(error: BaseException) -> str:
    if isinstance(error, _OutOfTime):
        return f"it does not end within {SECONDS:g} s"
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY / 2**30:g} GiB"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, jinja2.TemplateSyntaxError):
        text = f"line {error.lineno}: {' '.join((error.message or '').split())}"
    elif not isinstance(error, ValueError | jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


@contextmanager
def _limits() -> Iterator[None]:
    """Raise _OutOfTime after SECONDS and MemoryError beyond MEMORY.

    The clock needs the main thread, the memory's bound Linux.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        with _bounded_memory():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * resource.getpagesize() + MEMORY
    with suppress(ValueError, OSError):  # a bound of the user's may be lower
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _token_text(model: Model, name: str) -> str:
    token = getattr(llama_cpp, f"llama_vocab_{name}")(model.vocab)
    return "" if token < 0 else llama_cpp.llama_vocab_get_text(model.vocab, token).decode("utf-8", errors="replace")
