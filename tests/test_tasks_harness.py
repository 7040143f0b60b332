"""The model class for lm-evaluation-harness, against the harness' own class for transformers."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm_eval and accelerate: pip install -e '.[tasks]' accelerate")
pytest.importorskip("accelerate", reason="needs accelerate: pip install accelerate")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from pipeline.convert.checkpoint import open_checkpoint
from pipeline.convert.write import write_model
from pipeline.errors import UsageError
from pipeline.tasks.harness import SurgeryLM
from tests.convert.checkpoints import make_checkpoint

CONTEXT = 60  # tokens: long texts are truncated from the left, and rolled over
WORDS = ["the", "of", "and", "to", "Müller", "~", "12", "3.4", "with\n", "be", "he"]


@pytest.fixture(scope="module", params=["llama3", "llama"])  # without BOS, and with it
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(folder / "checkpoint", request.param)
    write_model(open_checkpoint(folder / "checkpoint"), folder / "model.gguf")
    exact = {"threads": 1, "cache_type_k": "f32", "cache_type_v": "f32", "flash_attention": False}
    mine = SurgeryLM(str(folder / "model.gguf"), max_length=CONTEXT, **exact)  # type: ignore[arg-type]
    theirs = HFLM(
        pretrained=str(folder / "checkpoint"), device="cpu", dtype="float32", batch_size=8, max_length=CONTEXT
    )
    yield mine, theirs
    mine.session.close()


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    return [Instance(kind, {}, args, 0) for args in arguments]


def texts(*lengths: int) -> list[str]:
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=length)) for length in lengths]


def test_likelihoods(models: tuple[Any, Any]) -> None:
    pairs: list[tuple[Any, ...]] = [
        (context, " " + ending if context else ending)
        for context in texts(1, 3, 12, 70, 0)
        for ending in texts(1, 2, 4)
    ]
    pairs += [("trailing blanks  ", "moved"), ("the", " he")]
    mine, theirs = (model.loglikelihood(instances("loglikelihood", pairs)) for model in models)
    assert [total for total, _ in mine] == pytest.approx([total for total, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]


def test_rolling_likelihoods(models: tuple[Any, Any]) -> None:
    whole: list[tuple[Any, ...]] = [(text,) for text in texts(1, 10, 60, 150)]
    mine, theirs = (model.loglikelihood_rolling(instances("loglikelihood_rolling", whole)) for model in models)
    assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-3)


def test_generation(models: tuple[Any, Any]) -> None:
    wanted: list[tuple[Any, ...]] = [(text, {"until": [" "], "max_gen_toks": 3}) for text in texts(1, 5, 90)]
    mine, theirs = (model.generate_until(instances("generate_until", wanted)) for model in models)
    assert [text.replace("�", "") for text in mine] == [text.replace("�", "") for text in theirs]


def test_a_text_that_begins_with_bos_gets_no_other(models: tuple[Any, Any]) -> None:
    for text in ("<s>of", "of"):
        mine, theirs = (model.tok_encode(text) for model in models)
        assert mine[:1] == theirs[:1]
        assert mine.count(mine[0]) == 1


def test_the_harness_knows_it_by_name() -> None:
    assert get_model("surgery") is SurgeryLM
    fresh = "from lm_eval.api.registry import get_model; print(get_model('surgery'), get_model('hf'))"
    found = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, check=True).stdout
    assert "SurgeryLM" in found
    assert "HFLM" in found


def test_a_start_of_python_imports_nothing_of_it() -> None:
    fresh = "import sys; print([m for m in sys.modules if m.split('.')[0] in ('pipeline', 'lm_eval', 'typing')])"
    found = subprocess.run([sys.executable, "-c", fresh], capture_output=True, text=True, check=True, cwd="/")
    assert found.stdout.strip() == "[]"


def test_the_chat_template_is_the_files_own(embedded: Path) -> None:
    model: Any = SurgeryLM(str(embedded), threads=1)
    asked = [{"role": "user", "content": "Hi"}]
    prompt = model.apply_chat_template(asked)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    begun = model.apply_chat_template([*asked, {"role": "assistant", "content": "Hel"}], add_generation_prompt=False)
    assert begun == prompt + "Hel"
    assert model.tok_encode("<|im_start|>") == [1]
    assert model.chat_template(True) == model.session.facts.chat_template
    with pytest.raises(UsageError, match="a GGUF file has one template"):
        model.chat_template("other")
    model.session.close()


def test_what_it_does_not_know_is_named(tiny: Path) -> None:
    with pytest.raises(UsageError, match="model_args dtype: not known"):
        SurgeryLM(str(tiny), dtype="float16")
    with pytest.raises(UsageError, match=r"path=MODEL.gguf is missing"):
        SurgeryLM()
    with pytest.raises(UsageError, match="a context of 513 tokens was asked for; the model has 2 to 512"):
        SurgeryLM(str(tiny), max_length=513)
    model: Any = SurgeryLM(str(tiny), threads=1)
    with pytest.raises(UsageError, match="generation_kwargs num_beams: surgery has"):
        model.generate_until(instances("generate_until", [("a", {"num_beams": 4})]))
    with pytest.raises(UsageError, match="likelihood of nothing"):
        model.loglikelihood(instances("loglikelihood", [("a", "")]))
    with pytest.raises(UsageError, match="600 tokens; expected 1 to 512"):
        model.loglikelihood(instances("loglikelihood", [("a", "b" * 600)]))
    with pytest.raises(UsageError, match="has no chat template"):
        model.apply_chat_template([])
    model.session.close()
