"""Answers: greedy ones against a plain decode of the same tokens, seeds, limits, and conversations."""

import signal
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from native.chat_template import render_chat
from native.errors import NativeError
from native.generate import AnswerStatistics, SamplingOptions, decode_prompt
from native.model import ContextOptions, load_model, open_context
from pipeline.conversation import Refused, ask, restart, start_conversation
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.tiny_architectures import write_lfm2
from tests.tiny_model import TinyModel, byte_vocabulary, tensors_of, with_number, write_tiny_model

GREEDY = SamplingOptions(temperature=0, max_tokens=12)
QUESTION = "What is machine learning?"


def say(
    model: Path, messages: list[str], sampling: SamplingOptions, n_ctx: int = 512
) -> list[tuple[str, AnswerStatistics]]:
    answers = []
    with closing(start_conversation(model, ContextOptions(n_ctx=n_ctx), sampling)) as conversation:
        for message in messages:
            *pieces, statistics = ask(conversation, message)
            assert isinstance(statistics, AnswerStatistics)
            answers.append(("".join(map(str, pieces)), statistics))
    return answers


def greedy_reference(model: Path, prompt: str, count: int) -> str:
    """The likeliest continuation, the whole text decoded anew for each token."""
    with load_model(str(model)) as loaded, open_context(loaded, ContextOptions(n_ctx=256)) as context:
        tokens = loaded.tokenize(prompt, special=True).tolist()
        start = len(tokens)
        for _ in range(count):
            context.clear()
            n = len(tokens)
            context.decode(tokens, np.arange(n), np.zeros(n, int), np.arange(n) == n - 1)
            token = int(context.logits(1)[0].argmax())
            if loaded.ends_generation(token):
                break
            tokens.append(token)
        return b"".join(map(loaded.piece, tokens[start:])).decode()


def test_a_greedy_answer_in_the_models_own_template(embedded: Path) -> None:
    with load_model(str(embedded)) as loaded:
        prompt = render_chat(loaded, [{"role": "user", "content": QUESTION}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    [(text, statistics)] = say(embedded, [QUESTION], GREEDY)
    assert text == greedy_reference(embedded, prompt, 12)
    assert (statistics.generated_tokens, statistics.finish_reason) == (12, "length")


def test_a_seed_makes_an_answer_repeatable(embedded: Path) -> None:
    one, two, other = (say(embedded, [QUESTION], SamplingOptions(1.5, 1.0, seed, 12))[0][0] for seed in (1, 1, 2))
    assert one == two != other


def test_a_conversation_is_remembered_and_its_cache_reused(embedded: Path) -> None:
    answers = say(embedded, ["My name is Zebulon.", "Say it again."], GREEDY)
    with load_model(str(embedded)) as loaded:
        messages = [
            {"role": "user", "content": "My name is Zebulon."},
            {"role": "assistant", "content": answers[0][0]},
            {"role": "user", "content": "Say it again."},
        ]
        prompt = render_chat(loaded, messages)
    assert answers[0][1].cached_tokens == 0
    assert answers[1][1].cached_tokens >= answers[0][1].prompt_tokens
    assert answers[1][0] == greedy_reference(embedded, prompt, 12)


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(embedded: Path) -> None:
    with closing(start_conversation(embedded, ContextOptions(), SamplingOptions(0, max_tokens=400))) as conversation:
        first, statistics = ask(conversation, QUESTION, lambda: True)
        assert isinstance(first, str)
        assert isinstance(statistics, AnswerStatistics)
        assert (statistics.generated_tokens, statistics.finish_reason) == (1, "interrupted")
        *_, statistics = ask(conversation, QUESTION, lambda: True)
        assert isinstance(statistics, AnswerStatistics)
        assert statistics.cached_tokens > 0


def test_an_operated_model_speaks(embedded: Path, tmp_path: Path) -> None:
    operate(open_gguf(embedded), tmp_path / "operated.gguf", Plan(threshold=0.99))
    [(text, statistics)] = say(tmp_path / "operated.gguf", [QUESTION], GREEDY)
    assert statistics.generated_tokens == 12
    assert "machine learning" in text.lower()


def test_the_context_is_a_limit(tiny: Path) -> None:
    [(_, statistics)] = say(tiny, ["abc"], SamplingOptions(temperature=0, max_tokens=1000), n_ctx=256)
    assert statistics.finish_reason in ("context", "stop")
    assert statistics.prompt_tokens + statistics.generated_tokens <= 256
    with pytest.raises(Refused, match="use a larger `n_ctx`"):
        say(tiny, ["x" * 300], GREEDY, n_ctx=256)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(NativeError, match="cannot load this model"):
        start_conversation(Path("nowhere.gguf"), ContextOptions(), GREEDY)


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"


def test_a_second_message_to_a_model_whose_memory_cannot_be_cut_back(tmp_path: Path) -> None:
    hybrid = write_lfm2(tmp_path / "lfm2.gguf", TURNS)
    answers = say(hybrid, ["Hello.", "Again."], GREEDY)
    assert [(text, statistics.finish_reason) for text, statistics in answers] == [("a", "stop"), ("a", "stop")]
    assert answers[1][1].cached_tokens == answers[0][1].prompt_tokens + 1  # the answer goes on from where it ended


def test_what_is_kept_of_a_memory_gives_the_logits_of_a_fresh_one(tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, 60).astype(np.int32), rng.integers(0, 256, 50).astype(np.int32)
    second[:20] = first[:20]
    for path, kept in ((tiny, 20), (write_lfm2(tmp_path / "lfm2.gguf", speaks=False), 0)):
        with load_model(str(path)) as model, open_context(model, ContextOptions()) as context:
            assert decode_prompt(context, second, np.empty(0, np.int32)) == 0
            fresh = context.logits(1).copy()
            context.clear()
            decode_prompt(context, first, np.empty(0, np.int32))
            assert decode_prompt(context, second, first) == kept
            np.testing.assert_allclose(context.logits(1), fresh, atol=1e-3)
            context.clear()
            decode_prompt(context, first, np.empty(0, np.int32))
            state, position = context.state(), np.array([60])
            one = (np.zeros(1, np.int32), np.ones(1, bool))
            context.decode([7], position, *one)
            expected = context.logits(1).copy()
            context.restore(state)
            context.decode([7], position, *one)
            np.testing.assert_allclose(context.logits(1), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must\nalternate') }}", "fails: Roles must alternate; `plain` does without it"),
        ("\n{% frobnicate %}", "fails: line 2: Encountered unknown tag 'frobnicate'"),
        ("{{ nothing + messages[0].content }}", "fails: 'nothing' is undefined"),
        ("{% for t in tools %}{% endfor %}", "fails: TypeError: 'NoneType' object is not iterable"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "fails: RecursionError: maximum recursion"),
        ("{{ ''.__class__.__mro__ }}", "fails: access to attribute '__class__'"),
        ("", "renders nothing of the conversation"),
        (" \n", "renders nothing of the conversation"),
    ],
)
def test_a_chat_template_that_fails_is_one_line(tmp_path: Path, template: str, reason: str) -> None:
    path = with_template(tmp_path / "m.gguf", template)
    with pytest.raises(Refused) as caught:
        say(path, ["abc"], GREEDY)
    assert str(caught.value).startswith(f"{path}: its chat template (tokenizer.chat_template) {reason}")
    assert len(str(caught.value).splitlines()) == 1
    with closing(start_conversation(path, ContextOptions(), GREEDY, plain=True)) as conversation:
        assert isinstance([*ask(conversation, "abc")][-1], AnswerStatistics)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "does not end within 0.3 s"),
        ("{{ 9 ** (9 ** 9) }}", "does not end within 0.3 s"),
        ("{{ 'a' * 10 ** 10 }}", "takes more than 1 GiB"),
    ],
)
def test_a_chat_template_has_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, reason: str
) -> None:
    monkeypatch.setattr("native.chat_template.SECONDS", 0.3)
    with (
        load_model(str(with_template(tmp_path / "m.gguf", template))) as model,
        pytest.raises(NativeError, match=reason),
    ):
        render_chat(model, [{"role": "user", "content": "abc"}])
    np.ones(2**20)  # the limits are gone
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_message_that_is_refused_does_not_end_the_conversation(tmp_path: Path) -> None:
    path = with_template(tmp_path / "m.gguf", "{{ raise_exception('no') if 'x' in messages[-1].content }}" + TURNS)
    with closing(start_conversation(path, ContextOptions(n_ctx=256), GREEDY, system="Short.")) as conversation:
        first = [*ask(conversation, "abc")]
        for refused, message in (("x", "fails: no"), ("y" * 300, "use a larger `n_ctx`")):
            with pytest.raises(Refused, match=message):
                [*ask(conversation, refused)]
        restart(conversation)
        assert [*ask(conversation, "abc")][:-1] == first[:-1]


def with_template(path: Path, template: str) -> Path:
    return write_tiny_model(path, metadata={"tokenizer.chat_template": (template, gguf.GGUFValueType.STRING)})


def test_a_token_may_spell_a_thousand_bytes(tmp_path: Path) -> None:
    long = "-" * 1000
    tensors = tensors_of(TinyModel())
    tensors["token_embd.weight"] = np.vstack([tensors["token_embd.weight"], tensors["token_embd.weight"][:1]])
    metadata = {
        "tokenizer.ggml.tokens": ([*byte_vocabulary(), long], gguf.GGUFValueType.ARRAY),
        "tokenizer.ggml.token_type": ([1] * 256 + [3, 4], gguf.GGUFValueType.ARRAY),
    }
    with load_model(str(write_tiny_model(tmp_path / "m.gguf", metadata=metadata, tensors=tensors))) as model:
        assert model.piece(257) == long.encode()
        assert model.tokenize(f"a{long}b", special=True).tolist()[1] == 257


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_broken_model_does_not_answer(tiny: Path, tmp_path: Path, temperature: float) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "blk.1.attn_k.weight", np.nan)
    with pytest.raises(NativeError, match=r"broken\.gguf: the largest logit is nan; .* numerically broken"):
        say(broken, [QUESTION], SamplingOptions(temperature))
