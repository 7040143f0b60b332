"""The arithmetic of latent attention against complex numbers, brute force and dense least squares."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pipeline.decompose.weighted import Metric
from pipeline.errors import SurgeryError
from pipeline.gguf_file.encode import as_stored
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.latent import queries, values
from pipeline.latent.compression import compress
from pipeline.latent.equalise import equalise_rotary, equalising_scales
from pipeline.latent.narrow import narrow_queries
from pipeline.latent.rope import Rope
from pipeline.latent.rotary import align_keys, as_complex, as_real, mean_turns, multiplication
from pipeline.latent.scaled import SCALE_OFFSETS, read_scaled, scaled_type
from pipeline.latent.scores import SampledAttention, latent_scores, rotate_at
from pipeline.latent.weights import LatentWeights

pytestmark = pytest.mark.numerical

RNG = np.random.default_rng(0)
HEADS, KV_HEADS, PAIRS, WIDTH = 4, 2, 3, 10


def moment(d: int) -> np.ndarray:
    x = RNG.standard_normal((50, d)) * np.geomspace(1, 0.1, d)
    return np.asarray(x.T @ x / 50)


def test_pairs_are_complex_numbers_and_back() -> None:
    rows = RNG.standard_normal((KV_HEADS, 2 * PAIRS, WIDTH))
    complex_rows = as_complex(rows)
    assert complex_rows.shape == (KV_HEADS, PAIRS, WIDTH)
    assert np.array_equal(as_real(complex_rows.reshape(-1, WIDTH)), rows.reshape(-1, WIDTH))


def test_a_multiplication_is_one_of_complex_numbers() -> None:
    q = RNG.standard_normal(2 * PAIRS)
    sources, factors = np.array([2, 0, 2]), RNG.standard_normal(3) + 1j * RNG.standard_normal(3)
    made = q @ multiplication(factors, sources, PAIRS)
    expected = (q[0::2] + 1j * q[1::2])[sources] * factors
    assert np.allclose(made[0::2] + 1j * made[1::2], expected)


def test_scores_of_rotated_pairs_depend_on_the_distance_alone() -> None:
    turning = Rope(PAIRS, 10000.0).frequencies()
    q, k = RNG.standard_normal((2, 1, 2 * PAIRS))
    scores = [
        (rotate_at(q, np.array([m]), turning) @ rotate_at(k, np.array([m - 5]), turning).T)[0, 0] for m in (5, 300)
    ]
    product = as_complex(q.T[None])[0, :, 0].conj() * as_complex(k.T[None])[0, :, 0]
    assert scores == pytest.approx([(product * np.exp(-5j * turning)).real.sum()] * 2)


def test_aligned_components_are_the_keys_turned() -> None:
    keys = as_complex(RNG.standard_normal((KV_HEADS, 2 * PAIRS, WIDTH)))
    energy, inputs = RNG.uniform(0.5, 2, (KV_HEADS, PAIRS)), moment(WIDTH)
    aligned = align_keys(keys, energy, inputs)
    assert np.allclose(np.einsum("fgc,fcd->gfd", aligned.restore, aligned.rows), keys)
    squares = np.einsum("gfd,de,gfe->gf", keys, inputs, keys.conj()).real * energy
    assert np.allclose(aligned.energies.sum(axis=1), squares.sum(axis=0))
    assert (np.diff(aligned.energies, axis=1) <= 1e-12).all()
    direction = RNG.standard_normal(KV_HEADS) + 1j * RNG.standard_normal(KV_HEADS)
    direction /= np.linalg.norm(direction)
    other = np.einsum("g,gfd->fd", direction.conj(), keys * np.sqrt(energy)[:, :, None])
    assert (np.einsum("fd,de,fe->f", other, inputs, other.conj()).real <= aligned.energies[:, 0] + 1e-12).all()


def test_the_mean_turn_is_the_best_constant() -> None:
    distances, turning = RNG.uniform(0, 1, (HEADS, 40)), Rope(PAIRS, 100.0).frequencies()
    best = mean_turns(distances, turning)
    turned = np.exp(-1j * np.arange(40) * turning[:, None])

    def loss(constants: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("hn,hfn->hf", distances, np.abs(turned - constants[:, :, None]) ** 2))

    for change in (0.01, -0.01, 0.01j, -0.01j):
        assert (loss(best) <= loss(best + change)).all()


def test_compression_is_the_best_of_its_rank_and_exact_at_full_rank() -> None:
    rows = RNG.standard_normal((8, WIDTH))
    metric = Metric(moment(WIDTH), [moment(3), moment(5)])
    for rank in (2, 8):
        made = compress(rows, metric, rank, seed=1)
        values = np.linalg.svd(metric.weigh(rows), compute_uv=False)
        error = np.square(values[rank:]).sum()
        assert metric.error(made.expand @ made.latent - rows) == pytest.approx(error, rel=1e-6, abs=1e-9)
        assert made.kept == pytest.approx(1 - error / np.square(values).sum())
        assert np.trace(made.latent @ metric.inputs @ made.latent.T) == pytest.approx(rank)
    assert np.allclose(made.expand @ made.latent, rows)
    assert compress(rows, metric, 9, seed=1).latent.shape == (9, WIDTH)


def sampled() -> SampledAttention:
    inputs = RNG.standard_normal((3, 24, WIDTH)).astype(np.float32)
    q = RNG.standard_normal((HEADS, 2 * PAIRS, WIDTH)).astype(np.float32) / 3
    k = RNG.standard_normal((KV_HEADS, 2 * PAIRS, WIDTH)).astype(np.float32) / 3
    v = RNG.standard_normal((KV_HEADS, 2 * PAIRS, WIDTH)).astype(np.float32) / 3
    return SampledAttention(inputs, q, k, v, Rope(PAIRS, 100.0).frequencies())


def latent_weights(rank: int) -> LatentWeights:
    def normal(*shape: int) -> np.ndarray:
        return RNG.standard_normal(shape) / 3

    return LatentWeights(
        normal(rank, WIDTH), normal(2 * PAIRS, WIDTH), normal(HEADS, 2 * PAIRS, rank),
        normal(HEADS, 2 * PAIRS, 2 * PAIRS), normal(HEADS, 2 * PAIRS, rank), Rope(PAIRS, 100.0).frequencies(),
    )  # fmt: skip


def test_narrowed_queries_lose_what_the_least_singular_values_are() -> None:
    weights, inputs, kept = latent_weights(rank=5), moment(WIDTH), 3
    q = RNG.standard_normal((HEADS, 2 * PAIRS, WIDTH))
    rows, onto = narrow_queries(weights, q, inputs, kept)
    assert (rows.shape, onto.shape) == ((HEADS, kept, WIDTH), (HEADS, kept, 5))
    root = np.linalg.cholesky(inputs)
    for head in range(HEADS):
        scores = root.T @ q[head].T @ weights.latent_query[head] @ weights.latent @ root
        off = root.T @ rows[head].T @ onto[head] @ weights.latent @ root - scores
        least = np.linalg.norm(np.linalg.svd(scores, compute_uv=False)[kept:])
        assert least <= np.linalg.norm(off) * (1 + 1e-9)
        assert np.linalg.norm(off) == pytest.approx(least, rel=0.02)  # the smallest eigenvalues are lifted
    same, alike = narrow_queries(weights, q, inputs, 2 * PAIRS)
    assert same is q
    assert alike is weights.latent_query


def noise_of_one_block(scales: np.ndarray, energy: np.ndarray, cost: np.ndarray) -> float:
    return float((cost / scales**2).sum() * (scales**2 * energy).sum())


def test_equalising_scales_make_the_noise_of_a_block_cost_least() -> None:
    energy, cost = RNG.uniform(0.01, 10, (2, 7))
    scales = equalising_scales(energy, cost)
    assert np.mean(scales**2 * energy) == pytest.approx(1)
    least = noise_of_one_block(scales, energy, cost)
    assert least == pytest.approx(np.sqrt(energy * cost).sum() ** 2)
    for change in RNG.uniform(0.8, 1.25, (20, 7)):
        assert noise_of_one_block(scales * change, energy, cost) >= least
    assert np.isfinite(equalising_scales(np.array([0.0, 1.0]), np.array([1.0, 0.0]))).all()
    assert np.isfinite(equalising_scales(np.zeros(3), np.zeros(3))).all()


def test_equalising_changes_no_score_and_makes_a_quantised_cache_better() -> None:
    pairs = 16
    inputs, nothing = RNG.standard_normal((2, 24, WIDTH)).astype(np.float32), np.zeros((1, 2, WIDTH), np.float32)
    attention = SampledAttention(inputs, nothing, nothing, nothing, Rope(pairs, 100.0).frequencies())
    q = RNG.standard_normal((1, 6, WIDTH))
    sizes = np.repeat(np.geomspace(0.01, 10, pairs), 2)
    weights = LatentWeights(
        RNG.standard_normal((32, WIDTH)), sizes[:, None] * RNG.standard_normal((2 * pairs, WIDTH)),
        np.zeros((1, 6, 32)), RNG.standard_normal((1, 6, 2 * pairs)), np.zeros((1, 6, 32)), attention.frequencies,
    )  # fmt: skip
    queries_read = (attention.inputs[:, attention.positions] @ q[0].T).astype(np.float32)

    def scores(kind: GGMLQuantizationType) -> np.ndarray:
        made = latent_scores(weights, attention)
        stored = replace(made, cache=as_stored(made.cache, kind))
        return np.concatenate(stored.scores(queries_read, weights.query_maps(0)), axis=1)

    right, rounded = scores(GGMLQuantizationType.F32), scores(GGMLQuantizationType.Q4_0)
    equalise_rotary(weights, q, np.eye(WIDTH))
    assert np.allclose(scores(GGMLQuantizationType.F32), right, rtol=1e-3, atol=1e-3 * np.abs(right).max())
    assert np.square(scores(GGMLQuantizationType.Q4_0) - right).sum() < 0.5 * np.square(rounded - right).sum()


def test_refitted_queries_are_the_weighted_least_squares_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "ITERATIONS", 300)
    monkeypatch.setattr(queries, "RIDGE", 0.0)
    attention, weights = sampled(), latent_weights(rank=2)
    _, error = queries.refit_queries(weights, attention)
    positions, n = attention.positions, attention.inputs.shape[1]
    key = attention.inputs @ weights.rotary_key.T
    cache = np.concatenate(
        [attention.inputs @ weights.latent.T, rotate_at(key, np.arange(n), attention.frequencies)], axis=2
    )
    least = total = 0.0
    for head in range(HEADS):
        q, (target,) = attention.queries(head), attention.scores(head)
        (p,) = attention.probabilities([target])
        columns = []
        for i in range(2 * PAIRS):
            for j in range(cache.shape[2]):
                made = np.zeros((3, len(positions), cache.shape[2]))
                made[..., j] = q[..., i]
                made[..., 2:] = rotate_at(made[..., 2:], positions, attention.frequencies)
                columns.append(made @ cache.transpose(0, 2, 1))
        design = np.stack(columns, axis=-1)
        design = design - np.einsum("cmn,cmnj->cmj", p, design)[:, :, None]
        centred = target - np.einsum("cmn,cmn->cm", p, target)[..., None]
        root = np.sqrt(p)
        a, b = (design * root[..., None]).reshape(-1, design.shape[-1]), (centred * root).ravel()
        least += float(np.square(a @ np.linalg.lstsq(a, b, rcond=None)[0] - b).sum())
        total += float(b @ b)
    assert error == pytest.approx(least / total, rel=1e-2)


def test_refitting_never_makes_it_worse_and_leaves_what_is_exact() -> None:
    attention, weights = sampled(), latent_weights(rank=3)
    before, after = queries.refit_queries(weights, attention)
    assert after < before
    full = LatentWeights(
        attention.k.reshape(-1, WIDTH), np.zeros((2 * PAIRS, WIDTH)), np.zeros((HEADS, 2 * PAIRS, KV_HEADS * 2 * PAIRS)),
        np.zeros((HEADS, 2 * PAIRS, 2 * PAIRS)), np.zeros((HEADS, 2 * PAIRS, KV_HEADS * 2 * PAIRS)), np.zeros(PAIRS),
    )  # fmt: skip
    still = SampledAttention(attention.inputs, attention.q, attention.k, attention.v, np.zeros(PAIRS))
    for head in range(HEADS):
        start = head // (HEADS // KV_HEADS) * 2 * PAIRS
        full.latent_query[head, :, start : start + 2 * PAIRS] = np.eye(2 * PAIRS)
    maps = full.latent_query.copy()
    assert queries.refit_queries(full, still)[0] < 1e-9
    assert np.array_equal(full.latent_query, maps)


def sampled_outputs(weights: LatentWeights, attention: SampledAttention, output: np.ndarray) -> tuple[np.ndarray, ...]:
    """What each head attends to, (heads, n, rank), and the source's output, (n, d), from the definitions, in float64."""
    n, size = attention.inputs.shape[1], attention.q.shape[1]
    inputs, everywhere = attention.inputs.astype(np.float64), np.arange(n)
    seen = everywhere <= attention.positions[:, None]
    latents, key = (
        inputs @ weights.latent.T,
        rotate_at(inputs @ weights.rotary_key.T, everywhere, attention.frequencies),
    )
    mixtures, wanted = [], np.zeros((inputs.shape[0] * len(attention.positions), output.shape[1]))

    def mixed(scores: np.ndarray, values: np.ndarray) -> np.ndarray:
        p = np.exp(scores / np.sqrt(size)) * seen
        return np.asarray(p / p.sum(axis=2, keepdims=True) @ values).reshape(-1, values.shape[2])

    for head in range(HEADS):
        q, k = inputs[:, attention.positions] @ attention.q[head].T, inputs @ attention.k[head // 2].T
        turned = rotate_at(q, attention.positions, attention.frequencies)
        scores = turned @ rotate_at(k, everywhere, attention.frequencies).transpose(0, 2, 1)
        wanted += mixed(scores, inputs @ attention.v[head // 2].T) @ output[head].T
        rotated = rotate_at(q @ weights.rotary_query[head], attention.positions, attention.frequencies)
        new = q @ weights.latent_query[head] @ latents.transpose(0, 2, 1) + rotated @ key.transpose(0, 2, 1)
        mixtures.append(mixed(new, latents))
    return np.stack(mixtures), wanted


def test_refitted_values_are_the_least_squares_solution_for_the_whole_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "RIDGE", 0.0)
    monkeypatch.setattr(values, "ITERATIONS", 500)
    attention, weights = sampled(), latent_weights(rank=2)
    output = RNG.standard_normal((HEADS, 30, 2 * PAIRS)).astype(np.float32)
    start = weights.value.copy()
    values.refit_values(weights, attention, output)
    mixtures, wanted = sampled_outputs(weights, replace(attention, apart=values.MIXTURES_APART), output)
    design = np.einsum("hdb,hnr->ndhbr", output, mixtures).reshape(wanted.size, -1)
    best = np.linalg.lstsq(design, wanted.ravel(), rcond=None)[0]
    before, after, least = (np.linalg.norm(design @ v.ravel() - wanted.ravel()) for v in (start, weights.value, best))
    assert after == pytest.approx(least, rel=1e-3)
    assert before > 1.05 * after


def test_the_ridge_keeps_values_that_nothing_speaks_against(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, weights = sampled(), latent_weights(rank=2)
    output = RNG.standard_normal((HEADS, 30, 2 * PAIRS)).astype(np.float32)
    before = weights.value.copy()
    monkeypatch.setattr(values, "RIDGE", 1e6)
    values.refit_values(weights, attention, output)
    assert np.allclose(weights.value, before, atol=1e-4)


@pytest.mark.parametrize("kind", [*SCALE_OFFSETS, GGMLQuantizationType.F16, GGMLQuantizationType.F32])
def test_a_scaled_tensor_is_the_tensor_times_the_factor(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    from native.quantize_rows import quantize_rows

    values = RNG.standard_normal((4, 256)).astype(np.float32)
    data = gguf.quantize(values, kind).view(np.uint8) if kind <= 1 else quantize_rows(values, kind)
    with create_gguf(
        tmp_path / "t.gguf", [metadata_entry("general.architecture", "llama")],
        [TensorDeclaration("t", values.shape, kind)], alignment=32, force=False,
    ) as writer:  # fmt: skip
        writer.put("t", data)
    model = open_gguf(tmp_path / "t.gguf")
    assert scaled_type(kind) == kind
    scaled = gguf.dequantize(read_scaled(model, "t", 64.0), kind).reshape(values.shape)
    assert np.array_equal(scaled, 64 * model.read("t"))
    if kind != GGMLQuantizationType.F32:
        with pytest.raises(SurgeryError, match="too large"):
            read_scaled(model, "t", 2.0**40)
