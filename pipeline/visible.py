"""Text of others on a terminal: what would move the cursor, colour it, clear it or turn its direction is made visible."""

import re

UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls, C1's, which some terminals obey too, among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of text (Unicode Standard Annex 9)
    "\u2028\u2029\ufeff"  # ends of lines and paragraphs, the byte order mark
    "\ud800-\udfff]"  # halves of a character: bytes of a name that are not UTF-8
)


def visible(text: str, keep: str = "") -> str:
    """`text` with every control character written as in a Python string, such as \\x1b or \\u202e, but those in `keep`."""
    return UNSEEN.sub(lambda match: match[0] if match[0] in keep else _written(match[0]), text)


def _written(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that Python kept because it is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]
