"""Position apart from content: what the keys of nearly all tokens have in common is held by a few rotated pairs for all.

At slow frequencies f most of a key's energy is one component, k = k~ + m c, whose number c is nearly the same for every
token (but for the first, where attention rests): what a query q makes of it, Re conj(q) m c exp(-i f t), is a function of
the distance t, the slope by which attention falls off. It is far larger than what tells tokens apart, and sets the scale
of its block in a quantised cache. Over all distances of a model's context these functions lie within a few hundredths in
the span of 1 and those of PAIRS of the frequencies. So these pairs hold c alone, the latent has it once for the constant,
and what is left to cache at all other slow frequencies is small. c is a linear
function of the input, so no bias is needed.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.latent.rotary import as_real, multiplication

PAIRS = 4  # that hold what is common: three leave more noise in a 4-bit cache
LEAST = 0.5  # share of the slow keys' energy that must be common: smollm2-135m has 0.75 to 0.99
NOISE = 1e-4  # what an error of what is held counts beside one of the fit, for queries of the keys' common size
NEAR = 16.0  # tokens: distances t count by 1 / (NEAR + t), each octave alike


def slow_pairs(frequencies: np.ndarray, context: int) -> int:
    """The first of `frequencies` (n,), highest first, that turns at most once within `context` tokens; n without any.

    A context of 0 is not known: n.
    """
    return int(np.count_nonzero(frequencies * context > 2 * np.pi)) if context else len(frequencies)


@dataclass(frozen=True)
class Common:
    """The strongest component of rows (n, d): `function` u, (d,), with E (u . x)^2 = 1, and its `share` of the energy."""

    function: np.ndarray
    share: float


def common_component(rows: np.ndarray, inputs: np.ndarray) -> Common:
    """Of `rows` (n, d), each counting as it is, for inputs of second moment `inputs` (d, d). Source: PCA."""
    values, vectors = np.linalg.eigh(rows @ inputs @ rows.T)
    total = float(np.clip(values, 0, None).sum())
    if total <= 0:
        return Common(np.zeros(rows.shape[1]), 0.0)
    return Common(vectors[:, -1] @ rows / np.sqrt(values[-1]), float(values[-1]) / total)


def position_fit(frequencies: np.ndarray, held: np.ndarray, context: int) -> np.ndarray:
    """cos f t and sin f t for each of `frequencies` (n,) by 1 and the same of `held` (m,): (n, 2, 1 + 2 m).

    The last axis has the factor of 1, then for each of `held` real and imaginary part of the query that makes it of a key
    of 1. Least squares over distances t from 0 to `context`, with a small ridge that keeps factors from cancelling.
    """
    t = np.unique(np.geomspace(1, max(context, 2), 400).round()) - 1
    weights = np.gradient(np.log(t + NEAR))

    def waves(f: np.ndarray) -> np.ndarray:
        angles = t[:, None] * f
        return np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(t), -1)

    columns = np.hstack([np.ones((len(t), 1)), waves(held) * np.tile([1, -1], len(held))])
    ridge = NOISE * np.diag([0.0] + [1.0] * (2 * len(held)))
    normal = columns.T * (weights / weights.sum())
    return np.linalg.solve(normal @ columns + ridge, normal @ waves(frequencies)).T.reshape(len(frequencies), 2, -1)


@dataclass(frozen=True)
class ApartKeys:
    """Aligned keys whose common component is apart, or as they were, nothing being `held`.

    content: complex (pairs, kv_heads, d), the rows without it
    function: u, (d,); loads: m, complex (slow pairs, kv_heads), how much of c = u . x each row had
    held: the pairs that are to hold c, (m,), their content being cached elsewhere
    fit: of the slow frequencies by the held ones, (slow pairs, 2, 1 + 2 m)
    """

    content: np.ndarray
    function: np.ndarray
    loads: np.ndarray
    held: np.ndarray
    fit: np.ndarray

    @property
    def held_numbers(self) -> np.ndarray:
        """The rotated numbers of the held pairs, (2 m,)."""
        return (2 * self.held[:, None] + np.arange(2)).ravel()

    @property
    def held_keys(self) -> np.ndarray:
        """The rows of the held pairs' numbers, (2 m, d): c and 0 for each."""
        return np.kron(np.ones((len(self.held), 1)), np.vstack([self.function, np.zeros_like(self.function)]))

    @property
    def constant(self) -> np.ndarray:
        """The row that the latent is to have besides, (1, d), or none: (0, d)."""
        return self.function[None][: len(self.held)]

    def queries(self, restore: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A head's maps from its query to what meets `constant`, (b, 1), and the held pairs, (b, 2 m).

        restore: complex (pairs, kv_heads), its key at each frequency from the components
        """
        pairs = len(restore)
        if not len(self.held):
            return np.zeros((2 * pairs, 0)), np.zeros((2 * pairs, 0))
        first = pairs - len(self.loads)
        factors = (restore[first:] * self.loads).sum(axis=1).conj()  # the head's own key has this much of c
        met = multiplication(factors, np.arange(first, pairs), pairs).reshape(2 * pairs, -1, 2)
        made = np.einsum("bni,nik->bk", met * [1, -1], self.fit)  # Re conj(y) exp(-i a) = Re y cos a - Im y sin a
        return made[:, :1], made[:, 1:]


def part_position(
    rows: np.ndarray, inputs: np.ndarray, frequencies: np.ndarray, rotary_pairs: int, context: int
) -> ApartKeys:
    """Take what is common out of the slow pairs of aligned `rows`, complex (pairs, kv_heads, d), if it pays.

    inputs: their second moment (d, d); frequencies: (pairs,), of which the first `rotary_pairs` are to be rotated
    """
    first = slow_pairs(frequencies, context)
    none = ApartKeys(rows, np.zeros(rows.shape[2]), np.zeros((0, rows.shape[1])), np.arange(0), np.zeros((0, 2, 1)))
    if first + PAIRS > rotary_pairs:
        return none
    common = common_component(as_real(rows[first:, 0]), inputs)
    if common.share < LEAST:
        return none
    loads = rows[first:] @ (inputs @ common.function)
    content = rows.copy()
    content[first:] -= loads[:, :, None] * common.function
    held = np.arange(first, first + PAIRS)
    return ApartKeys(
        content, common.function, loads, held, position_fit(frequencies[first:], frequencies[held], context)
    )
