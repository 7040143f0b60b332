"""The arithmetic of latent attention against complex numbers, brute force and dense least squares."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from pipeline.decompose.weighted import Metric
from pipeline.errors import SurgeryError
from pipeline.gguf_file.metadata import metadata_entry
from pipeline.gguf_file.reader import open_gguf
from pipeline.gguf_file.writer import TensorDeclaration, create_gguf
from pipeline.latent import refit
from pipeline.latent.compression import compress
from pipeline.latent.rotary import align_keys, as_complex, as_real, frequencies, mean_turns, multiplication
from pipeline.latent.scaled import SCALE_OFFSETS, read_scaled, scaled_type
from pipeline.latent.scores import SampledAttention, rotate_at
from pipeline.latent.weights import LatentWeights

RNG = np.random.default_rng(0)
HEADS, KV_HEADS, PAIRS, WIDTH = 4, 2, 3, 10


def moment(d: int) -> np.ndarray:
    x = RNG.standard_normal((50, d)) * np.geomspace(1, 0.1, d)
    return np.asarray(x.T @ x / 50)


def test_pairs_are_complex_numbers_and_back() -> None:
    rows = RNG.standard_normal((KV_HEADS * 2 * PAIRS, WIDTH))
    complex_rows = as_complex(rows, KV_HEADS)
    assert complex_rows.shape == (KV_HEADS, PAIRS, WIDTH)
    assert np.array_equal(as_real(complex_rows.reshape(-1, WIDTH)), rows)


def test_a_multiplication_is_one_of_complex_numbers() -> None:
    q = RNG.standard_normal(2 * PAIRS)
    sources, factors = np.array([2, 0, 2]), RNG.standard_normal(3) + 1j * RNG.standard_normal(3)
    made = q @ multiplication(factors, sources, PAIRS)
    expected = (q[0::2] + 1j * q[1::2])[sources] * factors
    assert np.allclose(made[0::2] + 1j * made[1::2], expected)


def test_scores_of_rotated_pairs_depend_on_the_distance_alone() -> None:
    turning = frequencies(10000.0, PAIRS)
    q, k = RNG.standard_normal((2, 1, 2 * PAIRS))
    scores = [
        (rotate_at(q, np.array([m]), turning) @ rotate_at(k, np.array([m - 5]), turning).T)[0, 0] for m in (5, 300)
    ]
    product = as_complex(q.T, 1)[0, :, 0].conj() * as_complex(k.T, 1)[0, :, 0]
    assert scores == pytest.approx([(product * np.exp(-5j * turning)).real.sum()] * 2)


def test_aligned_components_are_the_keys_turned() -> None:
    keys = as_complex(RNG.standard_normal((KV_HEADS * 2 * PAIRS, WIDTH)), KV_HEADS)
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
    distances, turning = RNG.uniform(0, 1, (HEADS, 40)), frequencies(100.0, PAIRS)
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
    return SampledAttention(inputs, q, k, v, frequencies(100.0, PAIRS))


def latent_weights(rank: int) -> LatentWeights:
    def normal(*shape: int) -> np.ndarray:
        return RNG.standard_normal(shape) / 3

    return LatentWeights(
        normal(rank, WIDTH), normal(2 * PAIRS, WIDTH), normal(HEADS, 2 * PAIRS, rank),
        normal(HEADS, 2 * PAIRS, 2 * PAIRS), normal(HEADS, 2 * PAIRS, rank),
    )  # fmt: skip


def test_refitted_queries_are_the_weighted_least_squares_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "ITERATIONS", 300)
    monkeypatch.setattr(refit, "RIDGE", 0.0)
    attention, weights = sampled(), latent_weights(rank=2)
    _, error = refit.refit(weights, attention)
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
    before, after = refit.refit(weights, attention)
    assert after < before
    full = LatentWeights(
        attention.k.reshape(-1, WIDTH), np.zeros((2 * PAIRS, WIDTH)), np.zeros((HEADS, 2 * PAIRS, KV_HEADS * 2 * PAIRS)),
        np.zeros((HEADS, 2 * PAIRS, 2 * PAIRS)), np.zeros((HEADS, 2 * PAIRS, KV_HEADS * 2 * PAIRS)),
    )  # fmt: skip
    still = SampledAttention(attention.inputs, attention.q, attention.k, attention.v, np.zeros(PAIRS))
    for head in range(HEADS):
        start = head // (HEADS // KV_HEADS) * 2 * PAIRS
        full.latent_query[head, :, start : start + 2 * PAIRS] = np.eye(2 * PAIRS)
    maps = full.latent_query.copy()
    assert refit.refit(full, still)[0] < 1e-9
    assert np.array_equal(full.latent_query, maps)


def test_refitted_values_give_what_the_heads_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "VALUE_RIDGE", 0.0)
    attention, weights = sampled(), latent_weights(rank=4)
    refit.refit(weights, attention)
    for head in range(HEADS):
        maps = np.hstack([weights.latent_query[head], weights.rotary_query[head]])
        key = attention.inputs @ weights.rotary_key.T
        cache = [attention.inputs @ weights.latent.T, rotate_at(key, np.arange(24), attention.frequencies)]
        q = attention.queries(head) @ maps
        q[..., 4:] = rotate_at(q[..., 4:], attention.positions, attention.frequencies)
        (now,) = attention.probabilities([q @ np.concatenate(cache, axis=2).transpose(0, 2, 1)])
        (before,) = attention.probabilities(attention.scores(head))
        mixed = (now @ cache[0]).reshape(-1, 4)
        wanted = (before @ (attention.inputs @ attention.v[head // 2].T)).reshape(-1, 2 * PAIRS)
        best = np.linalg.lstsq(mixed, wanted, rcond=None)[0].T
        assert np.allclose(weights.value[head], best, atol=1e-3)


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
