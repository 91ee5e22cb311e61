"""Times in interleaved rounds, memory, errors: every contestant in a process of its own.

What a process ran before decides what its allocator does next, and so how fast large temporaries
are; contestants that share a process would change one another's times.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from metalearn.benchmarks.contestants import CONTESTANTS
from metalearn.benchmarks.processes import AskedProcess
from metalearn.benchmarks.workloads import WORKLOADS
from metalearn.core.memory import free_memory

__all__ = ["OURS", "Timing", "curve", "race"]

_SHARE_OF_FREE = 0.6
OURS = {True: "batched", False: "first_order"}
"""The contestant that others are compared with, for second and first order."""


@dataclass(frozen=True)
class Timing:
    """One contestant on one workload; NaN is what was not asked or failed."""

    contestant: str
    milliseconds: float
    """Median over rounds."""
    floors: float
    """Median over rounds of time ÷ the floor's, which the same process ran just before."""
    ours: float
    """Median over rounds of time ÷ that of `OURS`, which had its turn just after."""
    error: float
    """‖g − g'‖ / ‖g'‖ in float64, g' the gradient of a plain loop: whether it is right."""
    rounding: float
    """Median over tasks of the same for g in float32: what rounding does."""
    memory: float
    """Peak bytes above those after the first import."""


def race(
    workload: str,
    names: Sequence[str],
    *,
    rounds: int,
    memory: bool = False,
    device: str = "cpu",
) -> list[Timing]:
    """Time contestants in turn, round by round, one at a time.

    Args:
        workload: key of `WORKLOADS`.
        names: keys of `CONTESTANTS`.
        rounds: how often each runs, after one round that does not count.
        memory: whether to measure peak memory as well.
        device: where, as torch names it.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_process(workload, name, device)) for name in names}
        peaks = {n: w.ask("memory")["memory"] if memory else math.nan for n, w in workers.items()}
        turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        for _ in range(rounds + 1):
            for name, worker in workers.items():
                turn = worker.ask("turn")
                ours = OURS[CONTESTANTS[name].second_order]
                base = turn["seconds"] if ours == name else math.nan
                if ours in workers and ours != name:
                    base = workers[ours].ask("turn")["seconds"]
                spent = turn["seconds"]
                turns[name].append((1e3 * spent, spent / turn["floor"], spent / base))
        errors = {name: worker.ask("errors") for name, worker in workers.items()}
    timings = []
    for name in names:
        milliseconds, floors, ours = map(statistics.median, zip(*turns[name][1:]))
        found = errors[name]
        timings.append(
            Timing(name, milliseconds, floors, ours, found["exact"], found["rounding"], peaks[name])
        )
    return timings


def curve(
    workload: str, names: Sequence[str], steps: Sequence[int], *, device: str = "cpu"
) -> dict[str, dict[int, dict[str, float]]]:
    """Peak memory (bytes) and time (seconds) at several numbers of inner steps.

    Every point is a process of its own; NaN where it failed, or would take most of the memory that
    is free by the one before.
    """
    return {name: _points(workload, name, sorted(steps), device) for name in names}


def _points(
    workload: str, name: str, steps: Sequence[int], device: str
) -> dict[int, dict[str, float]]:
    points: dict[int, dict[str, float]] = {}
    per_step, free = 0.0, free_memory(torch.device(device)) or math.inf
    for count in steps:
        if per_step * count > _SHARE_OF_FREE * free:
            points[count] = {"memory": math.nan, "seconds": math.nan}
            continue
        with _process(workload, name, device, count) as worker:
            found = worker.ask("memory")
        points[count] = {quantity: found[quantity] for quantity in ("memory", "seconds")}
        per_step = points[count]["memory"] / count
    return points


def _process(workload: str, contestant: str, device: str, steps: int | None = None) -> AskedProcess:
    """Of `metalearn.benchmarks.worker`."""
    count = WORKLOADS[workload].steps if steps is None else steps
    arguments = [workload, contestant, str(count), str(torch.get_num_threads()), device]
    return AskedProcess("metalearn.benchmarks.worker", arguments)
