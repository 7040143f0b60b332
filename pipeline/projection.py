"""One of the matrices that a layer multiplies with: which rows of which tensor."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.targets import FEED_FORWARD

ROLES = ("q", "k", "v")
PARTS = {
    "q": ("q", "q_a", "q_b"),
    "k": ("k", "kv_a", "k_b"),
    "v": ("v", "kv_a", "v_b"),
    **{role: (role,) for role in ("o", *FEED_FORWARD)},
}
"""The roles that play the part of a target: one matrix, or of q, k and v two with a latent between them."""
STACKS = {
    "q": (("q",), ("q_a",), ("q_b",)),
    "k": (("k",), ("kv_a",), ("k_b",)),
    "v": (("v",), ("v_b",)),
    "kv": (("k", "v"), ("kv_a",), ("k_b", "v_b")),
    "gate+up": (("gate", "up"),),
    **{role: ((role,),) for role in ("o", *FEED_FORWARD)},
}
"""Which roles are stacked for a group, as far as a layer has them: only what reads the same inputs."""

INPUTS = {
    "q_b": "q_latent", "k_b": "kv_latent", "v_b": "kv_latent",
    "o": "attn_heads", "gate": "ffn_input", "up": "ffn_input", "down": "ffn_product",
}  # fmt: skip
"""What the roles read that do not read the normalised input of the attention block, ATTENTION_INPUT."""
ATTENDED = frozenset({"q_latent", "kv_latent"})
"""What of these are inputs of attention: the attention that a token receives says how much it counts."""
ATTENTION_INPUT = "attn_input"


class Block(NamedTuple):
    """Which of a layer's feed-forward blocks: its own, or one beside it, of a `family`; an expert has a number.

    Without a number, all experts of a family.
    """

    family: str = ""
    expert: int | None = None

    def __str__(self) -> str:
        if self.expert is not None:
            return f"{self.family.removesuffix('s')} {self.expert}"
        return "shared expert" if self.family == "shared" else self.family


OWN = Block()


@dataclass(frozen=True)
class Projection:
    """One of the matrices of a layer: rows (output features) of a tensor, by input features.

    They are those of rows `start` to `stop`, or, where `every` is set to (size, period), the first `size` of each
    `period` rows from `start` on. A tensor of three axes (heads, n, d) counts as one of heads x n rows;
    `transposed` where it is stored as (heads, d, n). Of a tensor with a matrix for each expert, it is of that of its
    `block`.
    """

    layer: int
    role: str
    tensor: str
    start: int
    stop: int
    columns: int
    every: tuple[int, int] | None = None
    transposed: bool = False
    block: Block = OWN

    @property
    def rows(self) -> int:
        size, period = self.every or (1, 1)
        return -(-(self.stop - self.start) // period) * size

    @property
    def by_result(self) -> bool:
        """Whether what it makes is observed in the place of what it reads, which has several times as many features."""
        return self.role == "down" and self.rows < self.columns and self.block.expert is None

    @property
    def input(self) -> str:
        """The name of what is observed of it: of what it is multiplied with, or, `by_result`, of what it makes."""
        return f"{self.family_input}{'' if self.block.expert is None else self.block.expert}"

    @property
    def family_input(self) -> str:
        """As `input`, of an expert's the name of what all experts of its family are given."""
        name = "ffn_result" if self.by_result else INPUTS.get(self.role, ATTENTION_INPUT)
        return "-".join(filter(None, (name, self.block.family)))

    @property
    def kind(self) -> str:
        """Its role, of a block beside the layer's own with the family, such as `gate.experts`."""
        return ".".join(filter(None, (self.role, self.block.family)))

    @property
    def attended(self) -> bool:
        """Whether it reads an input of attention."""
        return self.input in {ATTENTION_INPUT, *ATTENDED}

    @property
    def targets(self) -> frozenset[str]:
        """Which targets it is a part of: one, or both k and v."""
        return frozenset(target for target, roles in PARTS.items() if self.role in roles)

    def is_target(self, targets: Iterable[str]) -> bool:
        """Whether all that it is a part of is among `targets`."""
        return self.targets <= frozenset(targets)

    @property
    def selected(self) -> slice | np.ndarray:
        """The rows of the tensor, to index with."""
        if self.every is None:
            return slice(self.start, self.stop)
        size, period = self.every
        return (np.arange(self.start, self.stop, period)[:, None] + np.arange(size)).ravel()

    def take(self, values: np.ndarray) -> np.ndarray:
        """The matrix, (rows, columns), out of the tensor's `values`."""
        whole = values.swapaxes(-1, -2) if self.transposed else values
        return np.ascontiguousarray(whole.reshape(-1, self.columns)[self.selected])

    def put(self, values: np.ndarray, matrix: np.ndarray) -> None:
        """Write the matrix into the tensor's `values`."""
        if self.transposed:
            whole = values.swapaxes(-1, -2)
            whole[...] = matrix.reshape(whole.shape)
        else:
            values.reshape(-1, values.shape[-1])[self.selected] = matrix


def stacks(layer: Iterable[str], group: str) -> list[tuple[str, ...]]:
    """The roles, of those that a layer has, that are stacked for a group such as `kv`; each tuple shares inputs."""
    has = set(layer)
    return [here for roles in STACKS[group] if (here := tuple(role for role in roles if role in has))]


def stack_name(roles: Iterable[str]) -> str:
    """What a stack of roles is called: `kv`, or `k_b+v_b` where they are parts."""
    roles = tuple(roles)
    return "".join(roles) if set(roles) <= set(ROLES) else "+".join(roles)


def shown_name(stack: str) -> str:
    """The name of a stack as tables and pictures have it, such as k+v for `kv`."""
    return "+".join(stack) if set(stack) <= set(ROLES) else stack
