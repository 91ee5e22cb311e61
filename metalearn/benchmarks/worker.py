"""One contestant, a process of its own: ``python -m metalearn.benchmarks.worker W2 loop 5 2 cpu``.

The arguments are workload, contestant, inner steps, threads and device. Each line on standard
input asks for one thing, and is answered by one line of JSON:

- ``memory``: peak bytes above those after the imports and a tiny meta-gradient (on a CUDA device,
  of torch's tensors above those of weights and data), and the shorter time in seconds of two runs
  (of one, where that takes long). Makes sense as the first question. Of what is compiled, the
  bytes are not said: they would be the compiler's.
- ``turn``: seconds of the floor, and of a meta-gradient right after it, each the median of several
  where it is over in an instant.
- ``errors``: see `errors`.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from metalearn.benchmarks.contestants import CONTESTANTS, Run
from metalearn.benchmarks.processes import answer_questions, process_peak
from metalearn.benchmarks.workloads import WORKLOADS, Workload
from metalearn.core.memory import peak_memory, synchronize
from metalearn.models import Conv4

__all__ = ["errors"]

_LONG = 20.0  # seconds after which nothing is run twice
_TURN = 0.03  # seconds that a turn lasts at least
_TASKS = 8  # of a batch, whose float32 errors are looked at one by one


def errors(workload: Workload, name: str) -> dict[str, float]:
    """Relative errors ‖g − g'‖ / ‖g'‖, g' by a plain loop in float64.

    Returns:
        ``exact``, of the mean gradient in float64; ``rounding``, the median over (the first 8)
        tasks of the error of a task's own gradient in float32: one ReLU that rounding flips moves
        one task, and would decide the error of a mean. Where each of them would be compiled, only
        the first.
    """
    reference = CONTESTANTS["loop" if CONTESTANTS[name].second_order else "first_order_loop"]

    def error(workload: Workload, dtype: torch.dtype) -> float:
        exact = reference.prepare(workload, torch.float64)()
        return _distance(CONTESTANTS[name].prepare(workload, dtype)(), exact)

    most = 1 if CONTESTANTS[name].compiles else _TASKS
    alone = [replace(workload, tasks=1, first=t) for t in range(min(most, workload.tasks))]
    return {
        "exact": error(workload, torch.float64),
        "rounding": statistics.median(error(task, torch.float32) for task in alone),
    }


class _Worker:
    def __init__(self, workload: Workload, contestant: str) -> None:
        self.workload, self.contestant = workload, contestant

    def memory(self) -> dict[str, float]:
        if CONTESTANTS[self.contestant].compiles:
            self._run()
            return {"memory": math.nan, "seconds": self._seconds(self._run)}
        tiny = partial(Conv4, (1, 8, 8), 2, filters=2)
        small = replace(self.workload, make=tiny, input_shape=(1, 8, 8), way=2, tasks=1, steps=1)
        CONTESTANTS[self.contestant].prepare(small, torch.float32)()  # loads what is loaded lazily
        run, device = self._run, torch.device(self.workload.device)
        if device.type == "cuda":
            known = CONTESTANTS[self.contestant].of_torch
            memory = peak_memory(run, device) if known else math.nan
            seconds = self._seconds(run)
        else:
            before = process_peak()
            seconds = self._seconds(run)
            memory = process_peak() - before
        if seconds < _LONG:
            seconds = min(seconds, self._seconds(run))
        return {"memory": memory, "seconds": seconds}

    def turn(self) -> dict[str, float]:
        self._floor()  # wakes the threads, or the card
        return {"floor": self._seconds(self._floor), "seconds": self._seconds(self._run)}

    def errors(self) -> dict[str, float]:
        return errors(self.workload, self.contestant)

    def _seconds(self, run: Callable[[], object]) -> float:
        """Of one run; where that is over in an instant, the median of as many as fill a turn.

        The first run after another process had the machine finds its caches cold, which in a
        training happens once, not at every iteration. What a device does is waited for.
        """
        spent: list[float] = []
        while sum(spent) < _TURN:
            start = time.perf_counter()
            run()
            synchronize(self.workload.device)
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)

    @cached_property
    def _run(self) -> Run:
        return CONTESTANTS[self.contestant].prepare(self.workload, torch.float32)

    @cached_property
    def _floor(self) -> Callable[[], None]:
        return self.workload.floor(second_order=CONTESTANTS[self.contestant].second_order)


def _distance(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    gap = sum(float((actual[n].double() - g).square().sum()) for n, g in expected.items())
    return math.sqrt(gap / sum(float(g.square().sum()) for g in expected.values()))


def _serve(workload: str, contestant: str, steps: str, threads: str, device: str) -> None:
    torch.set_num_threads(int(threads))
    worker = _Worker(replace(WORKLOADS[workload], steps=int(steps), device=device), contestant)
    answer_questions(lambda question: getattr(worker, question)())


if __name__ == "__main__":
    _serve(*sys.argv[1:])
