"""Which method, with how many tasks at a time, fits a memory: predicted from small trials.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from metalearn.core.memory import describe_bytes, peak_memory
from metalearn.core.meta.meta_gradient import Method
from metalearn.core.meta.task_mean import MetaGradient
from metalearn.errors import SettingError

__all__ = ["Fit", "PredictedMemory", "what_fits"]

_WORKSPACE = 1.3  # what allocators and operations need beyond the tensors that are counted
_SMALLEST_CHUNK = 4  # below this many tasks at a time, recomputation is cheaper than chunks


class Fit(NamedTuple):
    """A way that fits."""

    method: Method
    chunk_size: int | None
    """None takes all tasks at once."""
    peak: int
    """Bytes that it is predicted to take."""
    note: str
    """Why it is no faster way; empty where it is the fastest."""


class PredictedMemory:
    """Peak bytes of a gradient, by method, tasks at a time and inner steps.

    Args:
        attempt: a trial of so many tasks by a method with so many inner steps.
        device: where it runs.
        trials: tasks that there are for trials.
        tasks: T of the gradients to come.
        counted: count the bytes of tensors on every device, where else an allocator is asked.
    """

    def __init__(
        self,
        attempt: Callable[[int, Method, int], MetaGradient],
        device: torch.device,
        trials: int,
        tasks: int,
        *,
        counted: bool,
    ) -> None:
        self.attempt, self.trials, self.tasks = attempt, trials, tasks
        self._peak = partial(peak_memory, device=device, counted=counted)
        self._known: dict[Method, tuple[float, float, float]] = {}

    def __call__(self, method: Method, chunk: int, steps: int) -> int:
        """Bytes."""
        if method not in self._known:
            self._known[method] = self._measure(method)
        base, task, task_step = self._known[method]
        return int(_WORKSPACE * (base + chunk * (task + task_step * steps)))

    def _measure(self, method: Method) -> tuple[float, float, float]:
        """Base, per task, per task and step."""
        two = min(2, self.trials)

        def peak(tasks: int, steps: int) -> int:
            return self._peak(lambda: self.attempt(tasks, method, steps))

        self.attempt(1, method, 1)  # the first call of a module is tried beside, others are not
        one, more_steps, more_tasks = peak(1, 2), peak(1, 3), peak(two, 2)
        task_step = float(max(0, more_steps - one))
        task = float(more_tasks - one if two > 1 else one) - 2 * task_step
        return max(0.0, one - task - 2 * task_step), max(0.0, task), task_step


def what_fits(
    memory: int,
    cost: PredictedMemory,
    methods: Sequence[Method],
    steps: int,
    chunk_size: int | None,
    *,
    one_by_one: bool,
) -> Fit:
    """The first way that fits, of ``methods`` in their order, with all tasks or in chunks.

    Args:
        memory: bytes.
        cost: what each way takes.
        methods: the fastest first.
        steps: K.
        chunk_size: tasks at a time, if that is given.
        one_by_one: whether tasks run one after another whatever the chunk.

    Raises:
        SettingError: none does.
    """
    whole = cost.tasks
    given = 1 if one_by_one else chunk_size and min(chunk_size, whole)
    for method in methods:
        largest = given or _largest_chunk(memory, cost, method, steps)
        least = 1 if method == methods[-1] or given else min(_SMALLEST_CHUNK, whole)
        peak = cost(method, max(largest, 1), steps)
        if largest >= least and peak <= memory:
            note = ""
            if method != methods[0] or (largest < whole and not given):
                full = describe_bytes(cost(methods[0], whole, steps))
                name = "a gradient" if methods[0] == "auto" else methods[0]
                note = f"{name} with all tasks would need {full} of {describe_bytes(memory)}"
            chunk = chunk_size if given or largest >= whole else largest
            return Fit(method, chunk, peak, note)
    need = describe_bytes(cost(methods[-1], given or 1, steps))
    way = "" if methods[-1] == "auto" else f"method={methods[-1]} and "
    accepted = f"at least {need} is needed, with {way}chunk_size={given or 1}"
    raise SettingError("memory", describe_bytes(memory), accepted)


def _largest_chunk(memory: int, cost: PredictedMemory, method: Method, steps: int) -> int:
    """Most tasks at a time that fit, in chunks of about the same size; 0 where none does."""
    fits = [n for n in range(1, cost.tasks + 1) if cost(method, n, steps) <= memory]
    return math.ceil(cost.tasks / math.ceil(cost.tasks / max(fits))) if fits else 0
