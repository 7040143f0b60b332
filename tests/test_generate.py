"""Answers: greedy ones against a plain decode of the same tokens, seeds, limits, and conversations."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from native.errors import NativeError
from native.generate import AnswerStatistics, SamplingOptions, render_chat
from native.model import ContextOptions, load_model, open_context
from pipeline.conversation import ask, start_conversation
from pipeline.gguf_file.reader import open_gguf
from pipeline.operation.operate import operate
from pipeline.operation.plan import Plan
from tests.tiny_model import with_number

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
    with pytest.raises(NativeError, match="use a larger --ctx"):
        say(tiny, ["x" * 300], GREEDY, n_ctx=256)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(NativeError, match="cannot load this model"):
        start_conversation(Path("nowhere.gguf"), ContextOptions(), GREEDY)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_broken_model_does_not_answer(tiny: Path, tmp_path: Path, temperature: float) -> None:
    broken = with_number(tiny, tmp_path / "broken.gguf", "blk.1.attn_k.weight", np.nan)
    with pytest.raises(NativeError, match=r"broken\.gguf: the largest logit is nan; .* numerically broken"):
        say(broken, [QUESTION], SamplingOptions(temperature))
