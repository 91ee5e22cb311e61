"""Times in interleaved rounds, memory in processes of their own, errors against float64."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.workloads import Workload
from metalearn.core.memory import free_memory

__all__ = ["Timing", "curve", "errors", "race"]

_SHARE_OF_FREE = 0.6


@dataclass(frozen=True)
class Timing:
    """One contestant on one workload."""

    contestant: str
    milliseconds: float
    """Median over rounds."""
    floors: float
    """Median over rounds of time ÷ the floor's time in the same round."""
    error: float
    """‖g − g'‖ / ‖g'‖ in float64, g' the gradient of a plain loop: whether it is right."""
    rounding: float
    """The same with g in float32: what rounding does, ReLUs that flip included."""
    memory: float
    """Peak bytes above those after the first import, in a process of its own; NaN if not asked."""


def race(
    workload: Workload, names: Sequence[str], *, rounds: int, memory_of: str | None = None
) -> list[Timing]:
    """Time contestants in turn, round by round, each beside the floor of its order.

    Args:
        workload: what is timed.
        names: keys of `CONTESTANTS`.
        rounds: how often each runs, after one round that does not count.
        memory_of: name of the workload, to measure peak memory as well.
    """
    runs: dict[str, Callable[[], object]] = {
        name: CONTESTANTS[name].prepare(workload, torch.float32) for name in names
    }
    floors = {order: workload.floor(second_order=order) for order in (True, False)}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        base = {order: _seconds(run) for order, run in floors.items()}
        for name, run in runs.items():
            spent = _seconds(run)
            seconds[name].append(spent)
            ratios[name].append(spent / base[CONTESTANTS[name].second_order])
    return [
        Timing(
            name,
            1e3 * statistics.median(seconds[name][1:]),
            statistics.median(ratios[name][1:]),
            *errors(workload, name),
            _alone(memory_of, name, workload.steps)["memory"] if memory_of else math.nan,
        )
        for name in names
    ]


def curve(
    workload: str, names: Sequence[str], steps: Sequence[int]
) -> dict[str, dict[int, dict[str, float]]]:
    """Peak memory (bytes) and time (seconds) at several numbers of inner steps.

    Every point is a process of its own; NaN where it failed, or would take most of the memory that
    is free by the one before.
    """
    return {name: _points(workload, name, sorted(steps)) for name in names}


def _points(workload: str, name: str, steps: Sequence[int]) -> dict[int, dict[str, float]]:
    points: dict[int, dict[str, float]] = {}
    per_step, free = 0.0, free_memory(torch.device("cpu")) or math.inf
    for count in steps:
        if per_step * count > _SHARE_OF_FREE * free:
            points[count] = {"memory": math.nan, "seconds": math.nan}
            continue
        points[count] = _alone(workload, name, count)
        per_step = points[count]["memory"] / count
    return points


def _alone(workload: str, contestant: str, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "metalearn.benchmarks.alone", workload, contestant, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"memory": math.nan, "seconds": math.nan}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def errors(workload: Workload, name: str) -> tuple[float, float]:
    """Relative error in float64 and in float32 against a plain loop in float64."""
    reference = CONTESTANTS["loop" if CONTESTANTS[name].second_order else "first_order_loop"]
    exact = reference.prepare(workload, torch.float64)()
    size = sum(float(g.square().sum()) for g in exact.values())

    def error(dtype: torch.dtype) -> float:
        actual = CONTESTANTS[name].prepare(workload, dtype)()
        gap = sum(float((actual[n].double() - g).square().sum()) for n, g in exact.items())
        return math.sqrt(gap / size)

    return error(torch.float64), error(torch.float32)
