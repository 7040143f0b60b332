"""Talk to a model that runs in a process of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

from native.generate import AnswerStatistics, Chat, Refusal, Restart, SamplingOptions, chat
from native.isolated import isolated
from native.model import ContextOptions
from pipeline.errors import SurgeryError


class Refused(SurgeryError):
    """A message cannot be given to the model; others may."""


def start_conversation(
    model: Path, options: ContextOptions, sampling: SamplingOptions, *, system: str | None = None, plain: bool = False
) -> Chat:
    """Load `model` and wait for messages, as `native.generate.chat` does; close the result to end its process.

    Raises NativeError.
    """
    conversation = isolated(chat, str(model), options, sampling, system=system, plain=plain)
    next(conversation)
    return conversation


def ask(
    conversation: Chat, message: str, stopped: Callable[[], bool] = lambda: False
) -> Iterator[str | AnswerStatistics]:
    """Send `message`; the pieces of the answer as they come, then its statistics. `stopped` can end the answer early.

    Raises Refused when the model is not given the message, as its chat template fails, or the context is too small:
    the conversation can go on. Raises NativeError when it cannot.
    """
    event = conversation.send(message)
    while isinstance(event, str):
        yield event
        event = conversation.send("" if stopped() else None)
    if isinstance(event, Refusal):
        raise Refused(event.reason)
    assert event is not None
    yield event


def restart(conversation: Chat) -> None:
    """Forget what was said."""
    conversation.send(Restart())
