"""The answer of a report says what the study's numbers say."""

import re

import pytest

from pipeline.report.answer import answer
from pipeline.report.numbers import NOTHING, duration, low_to_high, megabytes, significant, with_error
from pipeline.report.page import render_page
from pipeline.report.study_charts import study_figures
from tests.made_up_study import find, made_up_study, made_up_text, unknown


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.01234, 0.00042, "0.0123 ± 0.0004"),
        (0.01234, 0.00012, "0.01234 ± 0.00012"),
        (12.9485, 0.755, "12.9 ± 0.8"),
        (8.00951, 0.0199, "8.01 ± 0.02"),
        (51872.9, 5357.8, "51,873 ± 5,358"),
        (0.5, 0.0, "0.500"),
        (2e-9, 3e-10, "2.0e-09 ± 3e-10"),
        (None, 0.1, NOTHING),
        (float("inf"), 0.1, NOTHING),
    ],
)
def test_a_value_is_rounded_to_its_error(value: float | None, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_other_numbers() -> None:
    assert low_to_high(0.04761, 0.05102) == "0.0476 to 0.0510"
    assert low_to_high(0.9, 7.23) == "0.9 to 7.2"
    assert low_to_high(0.5, 0.5) == "0.50 to 0.50"
    assert low_to_high(None, 0.1) == NOTHING
    assert (significant(0), significant(0.000123456), significant(1234.5)) == ("0", "0.000123", "1,234")
    assert megabytes(105_400_000) == "105.4 MB"
    assert [duration(seconds) for seconds in (31.4, 1268, 7500)] == ["31 s", "21 min", "2 h 5 min"]


def test_the_answer_is_the_smallest_file_within_the_limit() -> None:
    found = answer(made_up_study())
    assert found.text[0] == (
        "Q4_K_M alone loses least for its size: 0.0493 nats a token (95% interval 0.0475 to 0.0511)"
        " at 105.4 MB, 39% of the source's 270.9 MB."
    )
    assert "Surgery makes no smaller file within that limit" in " ".join(found.sentences)
    limits = {limit: [cell and cell["label"] for cell in row] for limit, row in found.choices}
    assert limits[0.01] == ["none, Q8_0", "none, Q8_0"]
    assert limits[1.0] == ["none, Q4_K_M", "shared-kv 0.5 attention, Q4_K_M"]


def test_the_answer_says_what_stored_factors_would_save() -> None:
    results = made_up_study(quants=("Q8_0",))
    find(results, "shared-kv 0.7 attention, Q8_0").update(kld_high=0.0999)
    assert (
        "If the factors were stored, shared-kv 0.7 attention, Q8_0 would take 142.1 MB, 2% less, and lose 0.0883 nats a token"
        in " ".join(answer(results).sentences)
    )


def test_the_upper_end_of_the_interval_decides() -> None:
    results = made_up_study(methods=())
    find(results, "none, Q4_K_M").update(kld_mean=0.0999, kld_high=0.1001)
    best = answer(results).best
    assert best
    assert best["label"] == "none, Q8_0"


def test_an_unmeasured_or_running_cell_is_never_the_answer() -> None:
    results = made_up_study()
    find(results, "none, Q4_K_M").update(status="running")
    unknown(find(results, "none, Q8_0"), "failed", "llama.cpp refused")
    found = answer(results)
    assert found.best
    assert found.best["quant"] == "Q4_K_M"
    assert found.best["method"] == "shared-kv"
    assert found.sentences[-1] == (
        "Not all of 39 combinations are complete: 1 failed, 1 running; the answer may change."
    )


def test_a_study_in_which_everything_loses_much() -> None:
    results = made_up_study(thresholds=(0.1,), quants=("F16",))
    results["cells"] = [cell for cell in results["cells"] if cell["method"] != "none"]
    found = answer(results)
    assert found.headline.startswith(" loses least, but much: ")
    assert "Of 3 combinations, none has a 95% interval that lies below 0.1" in found.sentences[0]


def test_a_study_that_has_only_begun() -> None:
    results = made_up_study(quants=("F16",))
    for cell in results["cells"]:
        unknown(cell, "pending")
    results["base"] = dict.fromkeys(results["base"]) | {"tasks": [], "passkeys": []}
    results["study"] |= dict.fromkeys(("chunks", "command", "machine", "seconds", "threads", "calibration"))
    assert answer(results).text[0] == "Nothing is measured yet, of 13 combinations."
    assert study_figures(results) == []
    page = render_page(results, answer(results), [])
    assert "Nothing</strong> is measured yet" in page
    assert "None" not in re.sub("<script.*?</script>", "", page, flags=re.DOTALL)


def test_a_file_that_is_no_smaller_than_the_source_is_not_praised() -> None:
    results = made_up_study(quants=("Q8_0",))
    results["base"]["file_bytes"] = 98_000_000
    assert (
        answer(results)
        .text[0]
        .startswith(
            "The source itself loses least for its size: nothing that loses little is smaller than its 98.0 MB."
            " Nearest comes Q8_0 alone: 0.00140 nats a token"
        )
    )


def test_interactions_are_counted() -> None:
    results = made_up_study()
    find(results, "separate 0.9 weights, Q4_K_M")["interaction"]["verdict"] = "more than adds up"
    assert (
        "Surgery and quantisation together lose the sum of both alone in 35 cases,"
        " more than the sum of both alone in 1 case."
    ) in answer(results).sentences


def test_with_several_texts_the_worst_decides_and_is_named() -> None:
    results = made_up_study()
    for cell in results["cells"]:
        cell["texts"] = [made_up_text(cell, "prose", 0.5), made_up_text(cell, "code", 3.0)]
    best = answer(results)
    assert best.best
    assert best.best["label"] == "none, Q8_0"  # Q4_K_M loses 0.15 on code
    assert "on code, its worst text (0.00140 on average)" in best.headline
    assert "lies below 0.1 nats a token on every text" in best.sentences[0]


def test_what_few_chunks_or_wide_intervals_say_is_preliminary() -> None:
    assert not answer(made_up_study()).preliminary
    few = made_up_study()
    for cell in few["cells"]:
        cell["texts"][0]["chunks"] = 2
    assert answer(few).text[1].startswith("Preliminary: 2 chunks of the text is little")
    wide = made_up_study(quants=("Q8_0",))
    find(wide, "none, Q8_0").update(kld_low=0.0002, kld_high=0.0026)
    assert answer(wide).preliminary == (
        "Preliminary: the interval of Q8_0 alone is wide, and more chunks would narrow it."
    )


def test_the_source_is_a_candidate_in_every_row() -> None:
    """Nothing is recommended that is larger than the source, which loses nothing."""
    results = made_up_study(quants=("F16", "Q8_0"))
    results["base"]["file_bytes"] = 98_000_000
    for _, row in answer(results).choices:
        assert row[0]
        assert row[0]["label"] == "source"
    smaller = answer(made_up_study())
    assert [row[0] and row[0]["label"] for _, row in smaller.choices][:1] == ["none, Q8_0"]


def test_words_are_explained_where_they_first_stand_and_commands_can_be_copied() -> None:
    results = made_up_study()
    page = render_page(results, answer(results), [])
    front = page[: page.index("The answer at length")]
    for word in ("nat", "shared-kv", "separate"):
        assert f"<dt>{word}</dt>" in front
    assert "<dt>random</dt>" not in front
    assert "surgery quantize smollm2.gguf cell.gguf Q4_K_M" in front
    assert page.count('class="by-hand"') == 1 + len(results["cells"])
