"""What `targets` may be: letters such as `qkv`, names such as `up`, and names of several, as the matrices that they mean."""

import re

from pipeline.errors import UsageError, suggestion

ATTENTION = ("q", "k", "v", "o")
FEED_FORWARD = ("gate", "up", "down")
TARGETS = (*ATTENTION, *FEED_FORWARD)
SEVERAL = {"attention": ATTENTION, "ffn": FEED_FORWARD, "all": TARGETS}
QKV = frozenset("qkv")
EXPECTED = "some of q, k, v, o, gate, up and down, such as qkv, kv or q+o+up; or attention, ffn or all"


def parse_targets(text: str) -> tuple[str, ...]:
    """The names in a text such as `q,k`, `qkv+o` or `all`: letters first, put together, then the others as they come.

    Raises UsageError for an unknown name, and a matrix that is named twice.
    """
    names = [name for name in re.split(r"[,+\s]+", text) if name]
    for name in names:
        if not (set(name) <= QKV or name in (*TARGETS, *SEVERAL)):
            near = suggestion(name, (*TARGETS, *SEVERAL))
            raise UsageError.of("targets", text, f"{name!r} is no projection; expected {EXPECTED}{near}")
    roles = [role for name in names for role in _named(name)]
    if twice := [role for role in roles if roles.count(role) > 1]:
        raise UsageError.of("targets", text, f"{twice[0]} is named twice; expected {EXPECTED}")
    if not roles:
        raise UsageError.of("targets", text, f"expected {EXPECTED}")
    letters = "".join(name for name in names if set(name) <= QKV)
    return tuple(filter(None, (letters, *(name for name in names if not set(name) <= QKV))))


def target_roles(text: str) -> frozenset[str]:
    """The members of TARGETS that a text names."""
    return frozenset(role for name in parse_targets(text) for role in _named(name))


def settled_targets(text: str) -> str:
    """The text that all have in common which name the same matrices."""
    roles, names = target_roles(text), []
    for several in ("all", "attention", "ffn"):
        if roles >= set(SEVERAL[several]):
            names.append(several)
            roles -= set(SEVERAL[several])
    letters = "".join(role for role in "qkv" if role in roles)
    return "+".join(filter(None, (letters, *names, *(role for role in TARGETS if role in roles - QKV))))


def _named(name: str) -> tuple[str, ...]:
    return SEVERAL.get(name) or (tuple(name) if set(name) <= QKV else (name,))
