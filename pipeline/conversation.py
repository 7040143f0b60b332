"""Talk to a model that runs in a process of its own."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from native.generate import AnswerStatistics, SamplingOptions, chat
from native.isolated import isolated
from native.model import ContextOptions

Conversation = Generator[str | AnswerStatistics | None, str | None, None]


def start_conversation(model: Path, options: ContextOptions, sampling: SamplingOptions) -> Conversation:
    """Load `model` and wait for messages; close the result to end its process. Raises NativeError."""
    conversation = isolated(chat, str(model), options, sampling)
    next(conversation)
    return conversation


def ask(
    conversation: Conversation, message: str, stopped: Callable[[], bool] = lambda: False
) -> Iterator[str | AnswerStatistics]:
    """Send `message`; the pieces of the answer as they come, then its statistics. `stopped` can end the answer early."""
    event = conversation.send(message)
    while isinstance(event, str):
        yield event
        event = conversation.send("" if stopped() else None)
    assert event is not None
    yield event
