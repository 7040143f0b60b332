"""A chat on the terminal, with one model or several that are told the same."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

from native.generate import Chat
from pipeline.cli.answering import answer
from pipeline.cli.output import echo
from pipeline.cli.wording import spoken
from pipeline.conversation import Refused, restart
from pipeline.visible import visible

HELP = """\
/reset  forget what was said
/help   show this
/bye    end, as an empty line and Ctrl-D do

Ctrl-C stops an answer. The arrow keys bring earlier lines. A message that begins with a slash is given one more."""


def chat_on_terminal(conversations: Mapping[str, Chat]) -> None:
    """Ask and answer until an empty line, the end of input, or Ctrl-C at the prompt, which is asked about."""
    use_readline()
    echo("Ask something; /help says what else there is, an empty line or Ctrl-D ends.", err=True)
    while (message := next_line("> ")) is not None:
        if message in ("", "/bye"):
            return
        if message == "/reset":
            for conversation in conversations.values():
                restart(conversation)
            echo("What was said is forgotten.", err=True)
        elif message == "/help" or (message.startswith("/") and not message.startswith("//")):
            echo(HELP if message == "/help" else f"{message.split()[0]}: no such command\n{HELP}", err=True)
        else:
            tell_all(conversations, message.removeprefix("/"))


def use_readline() -> None:
    """Let `input` edit lines and bring back earlier ones, where Python has readline."""
    with suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste off")  # it writes to terminals that do not know it


def next_line(prompt: str) -> str | None:
    """A line of input without the blanks around it; None at the end of input, or when the user wants to end."""
    while True:
        try:
            return input(prompt).strip()
        except EOFError:
            echo()
            return None
        except KeyboardInterrupt:
            echo()
            if wants_to_end():
                return None


def wants_to_end() -> bool:
    """Whether Ctrl-C was meant: the answer is yes, another Ctrl-C, or the end of input."""
    try:
        return input("End the chat? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        echo()
        return True


def tell_all(conversations: Mapping[str, Chat], message: str) -> None:
    """Say `message` to each and stream the answers; what is refused is a line, and the chat goes on."""
    with first_interrupt() as interrupted:
        for name, conversation in conversations.items():
            if not interrupted.is_set():
                try:
                    answer(name, conversation, message, label=len(conversations) > 1, stopped=interrupted.is_set)
                except Refused as error:
                    echo(f"surgery: {visible(spoken(str(error)))}\n", err=True)


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
