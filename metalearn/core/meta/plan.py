"""Which engine, which method and how many tasks at a time: tried and measured once, then fixed.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from metalearn.core.loss_checks import UnreachedError, outside_inference_mode
from metalearn.core.memory import describe_bytes, is_out_of_memory, peak_memory
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.agreement import Trials
from metalearn.core.meta.engines import Engine, structural_engine
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.meta_gradient import GradientThroughAdaptation, Method
from metalearn.core.meta.methods import Implicit
from metalearn.core.meta.step_weights import StepWeights
from metalearn.core.meta.task_checks import check_chunk, check_engine, check_sets, choose_engine
from metalearn.core.meta.task_mean import MetaGradient, mean_gradient
from metalearn.core.ops import counting_operations
from metalearn.core.tree import leaves, tree_map
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import LossFn, Params, TaskBatch

__all__ = ["Plan", "plan_meta_gradient"]

_WORKSPACE = 1.3  # what allocators and operations need beyond the tensors that are counted
_SMALLEST_CHUNK = 4  # below this many tasks at a time, recomputation is cheaper than chunks
_FEW = 10_000  # parameters up to which operations cost more by their number than by their size


@dataclass(frozen=True)
class Plan:
    """Arguments of `meta_gradient`, all decided."""

    engine: Engine
    method: Method
    chunk_size: int | None
    """None takes all tasks at once."""
    notes: tuple[str, ...] = ()
    """Why: one sentence for each decision that was not the user's."""
    peak: int | None = None
    """Bytes that a meta-gradient is predicted to take; None where nothing was measured."""

    def __str__(self) -> str:
        """One line for a log."""
        tasks = "all tasks at once" if self.chunk_size is None else f"{self.chunk_size} at a time"
        line = f"meta-gradient: method {self.method}, engine {self.engine}, {tasks}"
        if self.peak is not None:
            line += f", about {describe_bytes(self.peak)}"
        return "; ".join([line, *self.notes])


@outside_inference_mode
@checked
def plan_meta_gradient(
    loss_fn: LossFn,
    params: Params,
    tasks: TaskBatch,
    *,
    optimizer: InnerOptimizer,
    steps: int,
    method: Method = "auto",
    engine: Engine = "auto",
    chunk_size: int | None = None,
    frozen: str | Sequence[str] | None = None,
    implicit: Implicit | None = None,
    step_weights: StepWeights = None,
    memory: int | None = None,
    task_count: int | None = None,
    deterministic: bool = False,
) -> Plan:
    """Decide what is ``"auto"``, by trials on one or two of the tasks.

    Engine: the first of batched, vmap, loop that takes the loss and agrees with the loop in every
    parameter, on copies in float64 where the loss takes those; batched must gain too, by
    convolutions and norms or because the parameters are few. No time is taken. Method and chunk
    size: the first that fits ``memory`` of reverse with all tasks, reverse with chunks of at least
    4, mixed with all tasks or the largest chunks that fit. The memory is predicted from trials of
    1 and 2 tasks with 1 and 2 steps, in which it is linear.

    Arguments are those of `meta_gradient`; ``memory`` is the bytes that one may take, None leaves
    memory out of it; ``task_count`` is how many tasks one will have, as many as given by default;
    ``deterministic`` counts the bytes of tensors on every device, where else an allocator is asked.

    Raises:
        SettingError: nothing fits ``memory``, or what `meta_gradient` refuses.
    """
    adaptation = Adaptation(loss_fn, optimizer, steps, frozen)

    def attempt(
        engine: Engine, method: Method, steps: int, params: Params, tasks: TaskBatch
    ) -> MetaGradient:
        few = replace(adaptation, steps=steps)
        weights = None if step_weights is None else (1.0,) * (steps + 1)
        program = GradientThroughAdaptation.of(few, params, method, implicit, weights)
        chosen = choose_engine(engine, optimizer.elementwise)
        check_sets(tasks, steps)
        return mean_gradient(program, params, tasks, engine=chosen, chunk_size=None)

    GradientThroughAdaptation.of(adaptation, params, method, implicit, step_weights)
    adaptation.check_schedule(params)
    check_engine(engine)
    check_chunk(chunk_size)
    for name, value in (("memory", memory), ("task_count", task_count)):
        if value is not None:
            check_whole(name, value, 1)
    check_sets(tasks, steps)
    chosen: Engine = engine
    notes: list[str] = []
    if engine == "auto":
        trials = Trials(
            lambda engine, *given: attempt(engine, method, min(steps, 1), *given),
            params,
            _first(tasks, 2),
        )
        chosen, notes = _engine(trials, optimizer)
    plan = Plan(chosen, "reverse" if method == "auto" else method, chunk_size, tuple(notes))
    if memory is None:
        return plan
    leaf = leaves(tasks)[0]
    cost = _Cost(
        lambda n, m, k: attempt(chosen, m, k, params, _first(tasks, n)),
        leaf.device,
        len(leaf),
        task_count or len(leaf),
        counted=deterministic,
    )
    return _within(memory, plan, cost, method, steps)


def _engine(trials: Trials, optimizer: InnerOptimizer) -> tuple[Engine, list[str]]:
    found, reason = structural_engine(optimizer.elementwise)
    notes = [reason] if reason else []
    candidates: list[Engine] = ["batched", "vmap", "loop"]
    for engine in candidates[candidates.index(found) :]:
        try:
            with counting_operations() as used, _unbatched() as slow:
                result = trials(engine)
        except Exception as error:
            unfit = isinstance(error, UnreachedError | VectorizationError)
            wrong = isinstance(error, SettingError) and not unfit
            if wrong or engine == "loop" or is_out_of_memory(error):
                raise
            notes.append(f"{engine} cannot take this loss ({_first_line(error)})")
            continue
        if engine == "batched":
            if slow:
                notes.append(f"batched runs {', '.join(sorted(slow))} for one task after another")
                continue
            if not used.operations and sum(g.numel() for g in leaves(result.grads)) > _FEW:
                notes.append("no convolution or normalisation gains from batched")
                continue
        gap = "" if engine == "loop" else trials.disagreement(engine, result)
        if gap:
            notes.append(f"{engine} {gap}")
            continue
        if engine != "loop" and trials.note:
            notes.append(trials.note)
        return engine, notes
    raise AssertionError("the loop either works or raises")


@contextmanager
def _unbatched() -> Iterator[set[str]]:
    """Names of operations that vmap has no rule for, after the block; torch warns of them."""
    names: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield names
    shown: dict[Any, Any] = {}
    for warning in caught:
        named = re.search(r"batching rule for (\S+)\. ", str(warning.message))
        if named:
            names.add(named[1])
        else:
            warnings.warn_explicit(
                warning.message,
                warning.category,
                warning.filename,
                warning.lineno,
                registry=shown,
            )


class _Cost:
    """Peak bytes of a meta-gradient, predicted."""

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


def _within(memory: int, plan: Plan, cost: _Cost, method: Method, steps: int) -> Plan:
    """The first of the ways that fit."""
    whole = cost.tasks
    given = plan.chunk_size and min(plan.chunk_size, whole)
    methods: list[Method] = ["reverse", "mixed"] if method == "auto" else [plan.method]
    if plan.engine == "loop":
        given = 1  # one task at a time whatever the chunk
    for choice in methods:
        largest = given or _largest_chunk(memory, cost, choice, steps)
        least = 1 if choice == methods[-1] or given else min(_SMALLEST_CHUNK, whole)
        peak = cost(choice, max(largest, 1), steps)
        if largest >= least and peak <= memory:
            notes = list(plan.notes)
            if choice != methods[0] or (largest < whole and not given):
                full = describe_bytes(cost(methods[0], whole, steps))
                limit = describe_bytes(memory)
                notes.append(f"{methods[0]} with all tasks would need {full} of {limit}")
            chunk = plan.chunk_size if given or largest >= whole else largest
            return replace(plan, method=choice, chunk_size=chunk, notes=tuple(notes), peak=peak)
    need = describe_bytes(cost(methods[-1], given or 1, steps))
    raise SettingError(
        "memory",
        describe_bytes(memory),
        f"at least {need} is needed, with method={methods[-1]} and chunk_size={given or 1}",
    )


def _largest_chunk(memory: int, cost: _Cost, method: Method, steps: int) -> int:
    """Most tasks at a time that fit, in chunks of about the same size; 0 where none does."""
    fits = [n for n in range(1, cost.tasks + 1) if cost(method, n, steps) <= memory]
    return math.ceil(cost.tasks / math.ceil(cost.tasks / max(fits))) if fits else 0


def _first(tasks: TaskBatch, count: int) -> TaskBatch:
    few: TaskBatch = tree_map(lambda x: x[:count], tasks)
    return few


def _first_line(error: BaseException) -> str:
    if isinstance(error, VectorizationError):
        return error.reason
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
