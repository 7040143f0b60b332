"""Speeds behind a filled cache: every model at every depth, and the cache that llama.cpp allocates for it."""

from pathlib import Path

import pytest

from native.model import ContextOptions
from native.speed import GENERATED_TOKENS, PROMPT_TOKENS
from pipeline.evaluation.speed import speeds_at_depths
from tests.commands import call, call_json

PER_TOKEN = 2 * 2 * 2 * 32  # layers, k and v, bytes, numbers of two heads of 16


def test_every_model_is_measured_at_every_depth(tiny: Path, embedded: Path) -> None:
    told: list[tuple[float, float]] = []
    found = speeds_at_depths(
        [(path, ContextOptions(threads=1)) for path in (tiny, embedded)],
        [0, 700, 0],
        lambda done, total, _: told.append((done, total)),
    )
    assert [[speed.depth for speed in speeds] for speeds in found] == [[0, 700]] * 2
    for speed in found[0]:
        assert speed.n_ctx == speed.depth + PROMPT_TOKENS + GENERATED_TOKENS
        padded = -(-speed.n_ctx // 256) * 256
        assert speed.kv_cache_bytes == pytest.approx(padded * PER_TOKEN, rel=0.05)
        for rate in (speed.prompt_speed, speed.generation_speed):
            assert 0 < rate.low <= rate.median <= rate.high
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    assert sorted(told) == told


def test_eval_shows_speeds_beside_those_of_the_base(tiny: Path, english: Path) -> None:
    arguments = ("eval", tiny, "--base", tiny, "--text", english, "--ctx", "64", "--chunks", "2", "--depths", "0,32")
    result = call_json(*arguments)
    for speeds in (result["speeds"], result["base_speeds"]):
        assert isinstance(speeds, list)
        assert [speed["depth"] for speed in speeds] == [0, 32]
    assert result["file_bytes"] == result["base_file_bytes"] == tiny.stat().st_size
    shown = call(*arguments).stdout.splitlines()[-3:]
    assert [line.split()[0] for line in shown] == ["depth", "0", "32"]
    assert shown[1].count("% of the base's") == 3
    assert "(100% of the base's)" in shown[1]


def test_a_base_beside_a_model_with_another_cache_keeps_its_own(tiny: Path, english: Path) -> None:
    arguments = ("eval", tiny, "--base", tiny, "--text", english, "--ctx", "64", "--chunks", "2", "--depths", "0")
    result = call_json(*arguments, "--cache-type-k", "f32", "--cache-type-v", "f32")
    mine, base = result["speeds"][0], result["base_speeds"][0]  # type: ignore[index]
    assert mine["kv_cache_bytes"] == pytest.approx(2 * base["kv_cache_bytes"], rel=0.05)


def test_a_depth_is_a_number_of_tokens(tiny: Path, english: Path) -> None:
    for wrong in ("-1", "deep"):
        result = call("eval", tiny, "--text", english, "--depths", wrong)
        assert result.exit_code == 2
        assert wrong in result.stderr
