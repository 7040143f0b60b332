"""Position apart from content: against keys that are rotated as they are, and at the edges."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pipeline.gguf_file.encode import as_stored
from pipeline.latent.equalise import equalising_scales
from pipeline.latent.position import PAIRS, ApartKeys, common_component, part_position, position_fit, slow_pairs
from pipeline.latent.rotary import as_real

pytestmark = pytest.mark.numerical

RNG = np.random.default_rng(3)
CONTEXT, COUNT, KV_HEADS, WIDTH, TOKENS = 4096, 32, 2, 24, 600
TURNING = 100000.0 ** (-np.arange(COUNT) / COUNT)
FIRST = slow_pairs(TURNING, CONTEXT)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)


def inputs() -> np.ndarray:
    """Tokens whose first number is nearly 1, but for the first token, and whose others are noise: (TOKENS, WIDTH)."""
    x = RNG.standard_normal((TOKENS, WIDTH)) * 0.5
    x[:, 0] = 1 + 0.03 * RNG.standard_normal(TOKENS)
    x[0, 0] = 0
    return x


def keys_with_a_mean(size: float) -> np.ndarray:
    """Aligned rows whose slow pairs see the inputs' first number `size` times as strongly as the others."""
    rows = normal(COUNT, KV_HEADS, WIDTH) / np.sqrt(WIDTH)
    rows[FIRST:, :, 0] = size * normal(COUNT - FIRST, KV_HEADS)
    return rows


def parted(rows: np.ndarray, x: np.ndarray, rotary_pairs: int = COUNT, context: int = CONTEXT) -> ApartKeys:
    return part_position(rows, x.T @ x / len(x), TURNING, rotary_pairs, context)


def test_slow_pairs_turn_at_most_once() -> None:
    assert (TURNING[FIRST:] * CONTEXT <= 2 * np.pi).all()
    assert TURNING[FIRST - 1] * CONTEXT > 2 * np.pi
    assert slow_pairs(TURNING, 0) == COUNT
    assert slow_pairs(TURNING, 10**9) == COUNT


def test_the_common_component_is_the_first_principal_one() -> None:
    rows, x = RNG.standard_normal((8, WIDTH)), inputs()
    made = common_component(rows, x.T @ x / len(x))
    _, sizes, right = np.linalg.svd(x @ rows.T / np.sqrt(len(x)), full_matrices=False)
    assert made.share == pytest.approx(sizes[0] ** 2 / np.square(sizes).sum())
    values = x @ made.function
    assert np.mean(values**2) == pytest.approx(1)
    assert abs(np.mean(values * (x @ rows.T @ right[0]))) == pytest.approx(sizes[0])
    nothing = common_component(np.zeros((8, WIDTH)), np.eye(WIDTH))
    assert (nothing.share, np.abs(nothing.function).max()) == (0, 0)


def test_few_frequencies_stand_for_all_slow_ones() -> None:
    held, t = TURNING[FIRST : FIRST + PAIRS], np.arange(CONTEXT)
    made = position_fit(TURNING[FIRST:], held, CONTEXT)
    for f, (cosine, sine) in zip(TURNING[FIRST:], made, strict=True):
        waves = np.stack([np.cos(t[:, None] * held), -np.sin(t[:, None] * held)], axis=2).reshape(len(t), -1)
        columns = np.hstack([np.ones((len(t), 1)), waves])
        assert np.abs(columns @ cosine - np.cos(f * t)).max() < 0.03
        assert np.abs(columns @ sine - np.sin(f * t)).max() < 0.03


def scores(apart: ApartKeys, x: np.ndarray, q: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Of a query at the last position with every token, the rotated numbers rounded as `kind` once they are equalised."""
    n = len(x)
    angles = np.arange(n)[:, None] * TURNING
    number = q[0::2] + 1j * q[1::2]
    rotary = apart.content[:, 0].copy()
    asks = number.copy()
    constant, position = apart.queries(np.ones((COUNT, KV_HEADS), complex))
    made = q @ position
    rotary[apart.held] = apart.function
    asks[apart.held] = made[0::2] + 1j * made[1::2]
    keys = x @ rotary.T
    scales = equalising_scales(np.mean(np.abs(keys) ** 2, axis=0), np.abs(asks) ** 2)
    turned = np.exp(1j * angles) * keys * scales
    cache = as_stored(np.ascontiguousarray(as_real(turned.T).T, np.float32), kind)
    stored = cache[:, 0::2] + 1j * cache[:, 1::2]
    total = (((asks / scales).conj() * np.exp(-1j * (n - 1) * TURNING)) * stored).real.sum(axis=1)
    # what is not rotated any more: the content of held pairs and of the other components, here exact
    distance = np.exp(-1j * (n - 1 - np.arange(n))[:, None] * TURNING)
    content = np.einsum("fcd,nd->nfc", apart.content, x)
    content[:, np.setdiff1d(np.arange(COUNT), apart.held), 0] = 0
    total += np.einsum("f,nf,nfc->n", number.conj(), distance, content).real
    if len(apart.held):
        total += (q @ constant)[0] * (x @ apart.function)
    return total


def test_scores_are_those_of_the_keys_as_they_were_and_rounding_hurts_less() -> None:
    x, rows, q = inputs(), keys_with_a_mean(8.0), RNG.standard_normal(2 * COUNT)
    number = q[0::2] + 1j * q[1::2]
    distance = np.exp(-1j * (len(x) - 1 - np.arange(len(x)))[:, None] * TURNING)
    keys = np.einsum("fcd,nd->nf", rows, x)
    wanted = (number.conj() * distance * keys).real.sum(axis=1)
    apart = parted(rows, x)
    whole = parted(rows, x, context=0)
    assert apart.held.tolist() == list(range(FIRST, FIRST + PAIRS))
    f32, q4 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_0
    assert scores(whole, x, q, f32) == pytest.approx(wanted, abs=1e-3)
    sizes = np.abs(number[FIRST:] * rows[FIRST:, :, 0].sum(axis=1)).sum()
    assert np.abs(scores(apart, x, q, f32) - wanted).max() < 0.03 * sizes
    assert np.std(scores(apart, x, q, f32) - wanted) < 0.02 * np.std(wanted)
    assert np.var(scores(apart, x, q, q4) - wanted) < 0.5 * np.var(scores(whole, x, q, q4) - wanted)


def test_keys_stay_as_they_are_where_nothing_is_gained() -> None:
    x, rows = inputs(), keys_with_a_mean(8.0)
    for apart in (
        parted(rows, x, context=0),
        parted(rows, x, rotary_pairs=FIRST + PAIRS - 1),
        parted(rows, x, rotary_pairs=1),
        parted(keys_with_a_mean(0.1), x),
        parted(np.zeros_like(rows), x),
    ):
        assert len(apart.held) == len(apart.held_numbers) == len(apart.constant) == len(apart.held_keys) == 0
        assert [m.shape for m in apart.queries(normal(COUNT, KV_HEADS))] == [(2 * COUNT, 0)] * 2
    assert np.array_equal(parted(rows, x, context=0).content, rows)
