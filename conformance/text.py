"""The text that the random models read: characters that their vocabulary has."""

from pipeline.inputs.texts import EVALUATION_TEXT, Text, embedded_text


def conformance_text() -> Text:
    """Some of Python's documentation, in printable ASCII."""
    content = "".join(c for c in embedded_text(EVALUATION_TEXT)[:8192] if c == "\n" or " " <= c <= "~")
    return Text(EVALUATION_TEXT, content)
