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
