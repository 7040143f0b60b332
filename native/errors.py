"""What can go wrong in llama.cpp."""


class NativeError(Exception):
    """llama.cpp refused or failed; the message says what was tried, and ends with its own words.

    details: a traceback, or all that a process said before it died; for whoever looks for a fault
    """

    exit_code = 1
    details = ""

    def with_details(self, details: str) -> "NativeError":
        self.details = details
        return self


class TextError(NativeError):
    """What is wrong with the `text`-th text that was given; who knows its name puts it before the message."""

    text = 0


def require_tokens(count: int, needed: int, why: str) -> None:
    """Raise TextError when a text of `count` tokens has fewer than are `needed`; `why` says for what, and what to do."""
    if count < needed:
        raise TextError(f"has {count} token{'' if count == 1 else 's'}; at least {needed} are needed, {why}")
