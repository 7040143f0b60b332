"""What holds for any plan and any metric: ranks, sizes and budgets, and what turning the inputs must not change."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.compare.operations import read_operation, written_operation
from pipeline.decompose.attention_metric import average_over_turns, projected_moments
from pipeline.decompose.budget import spread_budget
from pipeline.decompose.methods import METHODS
from pipeline.decompose.principal_components import MEANS, principal_components
from pipeline.decompose.weighted import Metric, weigh_rows
from pipeline.errors import UsageError
from pipeline.gguf_file.encode import OUTTYPES
from pipeline.gguf_file.reader import open_gguf
from pipeline.latent.plan import LatentPlan
from pipeline.operation.operate import operate
from pipeline.operation.plan import RANK_RULES, Plan
from pipeline.targets import TARGETS

quick = settings(max_examples=60, deadline=None, derandomize=True)
on_files = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def plans(draw: st.DrawFn, metrics: tuple[str, ...] = ("weights",)) -> Plan:
    """Any plan for a model of two layers whose groups have 32 components or more."""
    method = draw(
        st.sampled_from(sorted(name for name in METHODS if metrics != ("weights",) or not METHODS[name].by_use))
    )
    rules: dict[str, Any] = {
        "threshold": st.floats(0.01, 1), "rank": st.integers(1, 32), "budget": st.floats(0.01, 1)
    }  # fmt: skip
    rule = draw(st.sampled_from(RANK_RULES))
    return Plan(
        method=method,
        targets="+".join(draw(st.permutations(TARGETS))[: draw(st.integers(1, 7))]),
        metric=draw(st.sampled_from(metrics[METHODS[method].by_use :])),  # the first is `weights`
        mean=draw(st.sampled_from(MEANS)),
        layers=draw(st.sampled_from(["all", "0", "1", "0-1", "0,1"])),
        group_layers=draw(st.sampled_from(["1", "2", "all", "0,1", "stride:2"]))
        if METHODS[method].across_layers
        else None,
        outtype=draw(st.sampled_from(OUTTYPES)),
        seed=draw(st.integers(0, 2**32 - 1)) if METHODS[method].random else 0,
        **{rule: draw(rules[rule])},
    )


Made = TypeVar("Made")


def attempt(make: Callable[[], Made]) -> tuple[Made | None, UsageError | None]:
    """What was made, or why not."""
    try:
        return make(), None
    except UsageError as error:
        return None, error


@quick
@given(plan=plans(("weights", "inputs", "attention")))
def test_a_plan_is_its_json_and_what_it_does_is_settled(plan: Plan) -> None:
    assert read_operation(json.loads(json.dumps(written_operation(plan)))) == plan
    effective = plan.effective()
    assert effective is None or effective.effective() == effective
    for rule, value in (("threshold", 0.123), ("rank", 7), ("budget", 0.321)):
        other = replace(plan, **{**dict.fromkeys(RANK_RULES), rule: value})  # type: ignore[arg-type]
        assert other.family() == plan.family()
    assert plan.label.startswith(plan.method)


@quick
@given(cache=st.floats(0.001, 1), rotary=st.none() | st.integers(1, 32).map(lambda pairs: 2 * pairs))
def test_a_latent_plan_is_its_json(cache: float, rotary: int | None) -> None:
    plan = LatentPlan(cache=cache, rotary=rotary)
    assert read_operation(json.loads(json.dumps(written_operation(plan)))) == plan
    assert plan.effective() == plan.family() == plan


@quick
@given(
    name=st.sampled_from(["threshold", "rank", "budget", "seed", "targets", "layers", "outtype", "metric", "mean"]),
    value=st.none() | st.integers() | st.floats() | st.text(max_size=4) | st.booleans() | st.just([0.5]),
)
def test_any_value_makes_a_plan_or_an_error_that_names_it(name: str, value: Any) -> None:
    made, error = attempt(lambda: Plan(**{name: value}))
    if error:
        assert error.argument == name
        assert "--" not in str(error).replace(repr(value), "")
    else:
        kept = getattr(made, name)
        assert kept in (value, 0.9) or (name == "targets" and kept == re.sub(r"[,\s]", "", value))


@on_files
@given(plan=plans())
def test_ranks_sizes_and_budgets_of_any_plan(tiny: Path, tmp_path: Path, plan: Plan) -> None:
    source = open_gguf(tiny)
    report, error = attempt(lambda: operate(source, tmp_path / "o.gguf", plan, force=True))
    if report is None:  # more layers are to share components than are operated on
        assert error is not None
        assert error.argument == "group_layers"
        return
    file = open_gguf(tmp_path / "o.gguf")
    assert {name: info.shape for name, info in file.tensors.items()} == {
        name: info.shape for name, info in source.tensors.items()
    }
    assert report.output_bytes == (tmp_path / "o.gguf").stat().st_size
    least = 0
    for group in report.groups:
        full_rank = min(group.rows, group.columns)
        assert 1 <= group.rank <= full_rank
        assert 0 <= group.explained <= 1
        roles = group.group.split("+") if "+" in group.group or group.group in TARGETS else list(group.group)
        assert set(group.relative_error) == set(roles) & plan.roles
        per_rank = group.dense_numbers // group.columns + group.columns
        whole = plan.budget is not None and plan.mean != "drop" and group.rank == full_rank
        kept = whole or plan.keeps_everything(full_rank)
        mean = group.columns if plan.mean == "keep" else 0
        assert group.factor_numbers == (group.dense_numbers if kept else group.rank * per_rank + mean)
        least += per_rank + mean
        if plan.threshold is not None and not METHODS[plan.method].random:
            assert group.explained >= plan.threshold - 1e-6
        if plan.rank is not None:
            assert group.rank == plan.rank
    if plan.budget is not None:
        assert report.factor_numbers <= max(plan.budget * report.dense_numbers, least) + 0.5


@quick
@given(data=st.data(), groups=st.integers(1, 5))
def test_a_budget_is_kept_and_more_of_it_never_saves_less(data: st.DataObject, groups: int) -> None:
    damages = [
        np.sort(data.draw(st.lists(st.floats(0, 10), min_size=1, max_size=8).map(np.array)))[::-1]
        for _ in range(groups)
    ]
    costs = data.draw(st.lists(st.integers(1, 9), min_size=groups, max_size=groups))
    budget = data.draw(st.floats(0, 200))
    ranks = spread_budget(damages, costs, budget)
    assert all(1 <= rank <= len(damage) for rank, damage in zip(ranks, damages, strict=True))
    spent = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    assert spent <= max(budget, sum(costs))
    everything = sum(len(damage) * cost for damage, cost in zip(damages, costs, strict=True))
    assert spread_budget(damages, costs, everything) == [len(damage) for damage in damages]
    for group, (rank, cost) in enumerate(zip(ranks, costs, strict=True)):  # nothing that is free of charge is left
        if rank < len(damages[group]):
            assert spent + cost > budget


seeds = st.integers(0, 2**32 - 1)


def random_case(seed: int, n: int, d: int) -> tuple[np.ndarray, Metric, np.random.Generator]:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((3 * d, d)) * np.geomspace(1, 0.1, d)
    blocks = [part @ part.T for part in rng.standard_normal((2, n // 2, n))]
    return rng.standard_normal((n, d)), Metric(inputs.T @ inputs, blocks), rng


def weighted_energies(rows: np.ndarray, metric: Metric, mean: str) -> np.ndarray:
    return principal_components(weigh_rows(rows, metric, mean).rows, "none").energies


@quick
@given(seed=seeds, n=st.sampled_from([4, 8]), d=st.integers(3, 10), mean=st.sampled_from(MEANS))
def test_turning_the_inputs_turns_the_reconstruction(seed: int, n: int, d: int, mean: str) -> None:
    rows, metric, rng = random_case(seed, n, d)
    turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
    turned = Metric(turn @ metric.inputs @ turn.T, metric.outputs)
    energies = weighted_energies(rows, metric, mean)
    np.testing.assert_allclose(weighted_energies(rows @ turn.T, turned, mean), energies, atol=1e-7 * energies[0])
    rank = min(n, d) // 2
    if energies[rank - 1] < 1.05 * energies[rank]:  # which components are kept is not determined
        return
    one, other = (
        weighted.restore(*principal_components(weighted.rows, "none").factors(rank))
        for weighted in (weigh_rows(rows, metric, mean), weigh_rows(rows @ turn.T, turned, mean))
    )
    np.testing.assert_allclose(other, one @ turn.T, atol=1e-3)


@quick
@given(seed=seeds, factor=st.floats(1e-6, 1e6))
def test_the_unit_of_the_inputs_makes_no_difference(seed: int, factor: float) -> None:
    rows, metric, _ = random_case(seed, 8, 6)
    scaled = weighted_energies(rows, Metric(factor * metric.inputs, metric.outputs), "none")
    np.testing.assert_allclose(
        scaled, factor * weighted_energies(rows, metric, "none"), rtol=1e-6, atol=1e-9 * scaled[0]
    )


@quick
@given(seed=seeds, pairs=st.integers(1, 4), rest=st.integers(0, 3), rope=st.sampled_from(["norm", "neox"]))
def test_what_rope_averages_away_does_not_depend_on_where_it_begins(
    seed: int, pairs: int, rest: int, rope: str
) -> None:
    rng = np.random.default_rng(seed)
    size = 2 * pairs + rest
    part = rng.standard_normal((size, 2 * size))
    moment = part @ part.T
    turn = np.eye(size)
    for pair, angle in enumerate(rng.uniform(0, 2 * np.pi, pairs)):
        first, second = (2 * pair, 2 * pair + 1) if rope == "norm" else (pair, pair + pairs)
        turn[np.ix_([first, second], [first, second])] = [
            [np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]
        ]  # fmt: skip
    averaged = average_over_turns(moment, rope, 2 * pairs)
    np.testing.assert_allclose(
        average_over_turns(turn @ moment @ turn.T, rope, 2 * pairs), averaged, atol=1e-9 * size**2
    )
    np.testing.assert_allclose(average_over_turns(averaged, rope, 2 * pairs), averaged)
    assert np.trace(averaged) == pytest.approx(np.trace(moment))


@quick
@given(seed=seeds, heads=st.integers(1, 3), biased=st.booleans())
def test_moments_of_outputs_are_those_of_a_sample(seed: int, heads: int, biased: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, inputs = rng.standard_normal((2 * heads, 5)), rng.standard_normal((50, 5)) + 1
    bias = rng.standard_normal(2 * heads) if biased else None
    found = projected_moments(rows, inputs.T @ inputs / 50, inputs.mean(axis=0), bias, heads)
    outputs = inputs @ rows.T + (0 if bias is None else bias)
    for head, moment in enumerate(found):
        own = outputs[:, 2 * head : 2 * head + 2]
        np.testing.assert_allclose(moment, own.T @ own / 50, atol=1e-10)
