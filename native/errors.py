"""What can go wrong in llama.cpp."""


class NativeError(Exception):
    """llama.cpp refused or failed; the message says what was tried, and ends with its own words."""

    exit_code = 1
