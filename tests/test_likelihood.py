"""Many continuations and completions at once, against one sequence decoded token by token."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from native.completion import Prompt, choose_token, complete
from native.errors import NativeError
from native.likelihood import Continuation, Likelihood, score_continuations
from native.model import ContextOptions, load_model, open_context
from tests.tiny_model import with_number

EXACT = ContextOptions(threads=1, type_k="f32", type_v="f32", flash_attention=False)


def token_by_token(path: Path, tokens: np.ndarray, exact: ContextOptions = EXACT) -> np.ndarray:
    """log p of every token after each of `tokens`, decoded one at a time: (n, n_vocab)."""
    rows = []
    with (
        load_model(str(path)) as model,
        open_context(model, ContextOptions(**vars(exact) | {"n_ctx": 1024})) as context,
    ):
        for position, token in enumerate(tokens):
            context.decode([token], np.array([position]), np.zeros(1, int), np.ones(1, bool))
            rows.append(context.logits(1)[0].astype(np.float64))
    return np.asarray(log_softmax(np.array(rows), axis=1))


def scored(path: Path, requests: list[Continuation]) -> tuple[list[Likelihood], int, int]:
    """The likelihoods, and how many tokens were decoded, and spared."""
    found: dict[int, Likelihood] = {}
    decoded = saved = 0
    with load_model(str(path)) as model:
        for part in score_continuations(model, requests, EXACT):
            found |= part.likelihoods
            decoded, saved = decoded + part.decoded, saved + part.saved
    return [found[number] for number in range(len(requests))], decoded, saved


def tree_of_requests() -> list[Continuation]:
    """Contexts that branch at random places, endings of one token and more, a context longer than a round, repeats."""
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 256, 900)
    contexts = [np.r_[trunk[: rng.integers(1, 80)], rng.integers(0, 256, rng.integers(0, 20))] for _ in range(40)] + [
        trunk[:700],
        trunk[:699],
        trunk,
    ]
    requests = [
        Continuation(context, rng.integers(0, 256, rng.integers(1, 5))) for context in contexts for _ in range(3)
    ]
    return [*requests, requests[0], Continuation(requests[0].context, np.r_[requests[0].target, 7])]


def test_likelihoods_are_those_of_single_sequences(tiny: Path) -> None:
    requests = tree_of_requests()
    found, decoded, saved = scored(tiny, requests)
    assert decoded + saved == sum(len(r.context) + len(r.target) - 1 for r in requests)
    assert saved > decoded
    for request, likelihood in zip(requests, found, strict=True):
        log_p = token_by_token(tiny, np.r_[request.context, request.target[:-1]])[len(request.context) - 1 :]
        expected = log_p[np.arange(len(request.target)), request.target]
        np.testing.assert_allclose(likelihood.log_probabilities, expected, atol=1e-4)
        assert likelihood.greedy == bool((log_p.argmax(axis=1) == request.target).all())


def test_what_the_model_would_say_is_greedy(tiny: Path) -> None:
    context = np.array([72, 101])
    target: list[int] = []
    for _ in range(3):
        target.append(int(token_by_token(tiny, np.r_[context, target].astype(int))[-1].argmax()))
    other = [*target[:2], (target[2] + 1) % 256]
    found, _, _ = scored(tiny, [Continuation(context, np.array(target)), Continuation(context, np.array(other))])
    assert [likelihood.greedy for likelihood in found] == [True, False]


def test_a_prefix_of_all_questions_is_decoded_once(tiny: Path) -> None:
    rng = np.random.default_rng(1)
    shots = rng.integers(0, 256, 400)
    requests = [
        Continuation(np.r_[shots, question], rng.integers(0, 256, 2))
        for question in rng.integers(0, 256, (60, 12))
        for _ in range(4)
    ]
    _, decoded, _ = scored(tiny, requests)
    assert decoded <= 400 + 60 * (12 + 4) + 20  # a token more where a question is split between rounds


def test_no_requests_no_likelihoods(tiny: Path) -> None:
    assert scored(tiny, []) == ([], 0, 0)


def test_a_broken_model_is_named(tiny: Path, tmp_path: Path) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "output_norm.weight", np.nan)
    with pytest.raises(NativeError, match=r"broken.gguf.*numerically broken"):
        scored(broken, [Continuation(np.array([1]), np.array([2]))])


def test_completions_are_those_of_single_sequences(tiny: Path) -> None:
    rng = np.random.default_rng(2)
    trunk = rng.integers(0, 256, 40)
    prompts = [Prompt(np.r_[trunk[:n], rng.integers(0, 256, 3)], 10) for n in rng.integers(0, 40, 20)]
    prompts += [Prompt(trunk, 10), Prompt(trunk[:39], 4), Prompt(trunk, 1)]
    texts: dict[int, str] = {}
    with load_model(str(tiny)) as model:
        for group in complete(model, prompts, EXACT):
            texts |= group
        for number, prompt in enumerate(prompts):
            tokens, pieces = list(prompt.tokens), b""
            while len(tokens) < len(prompt.tokens) + prompt.limit:
                tokens.append(int(token_by_token(tiny, np.array(tokens))[-1].argmax()))
                if model.ends_generation(tokens[-1]):
                    break
                pieces += model.piece(tokens[-1])
            assert texts[number] == pieces.decode(errors="replace")


def test_a_completion_ends_before_a_stop(tiny: Path) -> None:
    with load_model(str(tiny)) as model:
        tokens = np.arange(30, 60)
        (whole,) = next(complete(model, [Prompt(tokens, 12)], EXACT)).values()
        stop = whole[3:5]
        (cut,) = next(complete(model, [Prompt(tokens, 12, (stop,))], EXACT)).values()
    assert cut == whole[: whole.index(stop)]


def test_sampling_follows_its_seed_and_its_options() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))

    def counts(**options: float) -> np.ndarray:
        prompt = Prompt(np.array([0]), 1, temperature=1.0, **options)  # type: ignore[arg-type]
        rng = np.random.default_rng(0)
        return np.bincount([choose_token(logits, prompt, rng) for _ in range(4000)], minlength=4) / 4000

    np.testing.assert_allclose(counts(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(counts(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(counts(top_p=0.75), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_array_equal(counts(top_p=0.1), [1, 0, 0, 0])


def test_equal_prompts_differ_by_seed_alone(tiny: Path) -> None:
    prompts = [Prompt(np.array([5, 6]), 20, temperature=1.0, seed=(seed,)) for seed in (1, 1, 2)]
    with load_model(str(tiny)) as model:
        first, again, other = next(complete(model, prompts, EXACT)).values()
    assert first == again != other
