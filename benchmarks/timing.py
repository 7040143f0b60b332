"""Timing in turn, so that a machine whose speed drifts treats both sides alike."""

import time
from collections.abc import Callable
from statistics import median


def seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def in_turn(
    ours: Callable[[], object], other: Callable[[], object], rounds: int = 5
) -> tuple[float, float, list[float]]:
    """Median seconds of both after one round that is not counted, and the ratios other / ours, sorted."""
    pairs = [(seconds(ours), seconds(other)) for _ in range(rounds + 1)][1:]
    return median(p[0] for p in pairs), median(p[1] for p in pairs), sorted(other / ours for ours, other in pairs)


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
