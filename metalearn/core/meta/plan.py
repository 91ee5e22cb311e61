"""Which engine, which method and how many tasks at a time: tried and measured once, then fixed.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.memory import describe_bytes
from metalearn.core.meta.adaptation import Adaptation
from metalearn.core.meta.adapted_task import Implicit
from metalearn.core.meta.agreement import Trials, doubled
from metalearn.core.meta.engine_trials import engine_by_trial
from metalearn.core.meta.engines import Engine
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.meta.meta_gradient import GradientThroughAdaptation, Method
from metalearn.core.meta.predicted_memory import PredictedMemory, what_fits
from metalearn.core.meta.step_weights import StepWeights
from metalearn.core.meta.task_checks import check_chunk, check_engine, check_sets, choose_engine
from metalearn.core.meta.task_gradient import TaskLossGradient
from metalearn.core.meta.task_mean import MetaGradient, mean_gradient
from metalearn.core.tree import check_floating, leaves, tree_map
from metalearn.errors import check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["Plan", "plan_meta_gradient", "plan_task_gradient"]


@dataclass(frozen=True)
class Plan:
    """Arguments of `meta_gradient` or of `task_gradient`, all decided."""

    engine: Engine
    method: Method
    """``"auto"`` for a task loss, of which there is but one gradient."""
    chunk_size: int | None
    """None takes all tasks at once."""
    notes: tuple[str, ...] = ()
    """Why: one sentence for each decision that was not the user's."""
    peak: int | None = None
    """Bytes that a gradient is predicted to take; None where nothing was measured."""

    def __str__(self) -> str:
        """One line for a log."""
        tasks = "all tasks at once" if self.chunk_size is None else f"{self.chunk_size} at a time"
        way = "task gradient:" if self.method == "auto" else f"meta-gradient: method {self.method},"
        line = f"{way} engine {self.engine}, {tasks}"
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
    whole = GradientThroughAdaptation.of(adaptation, params, method, implicit, step_weights)
    adaptation.check_schedule(params)
    check_sets(tasks, steps)
    methods: list[Method] = ["reverse", "mixed"] if method == "auto" else [method]
    return _decided(
        _Trial(whole.shortened, params, tasks, steps, optimizer.elementwise),
        methods,
        _Asked(engine, chunk_size, memory, task_count, deterministic),
    )


@outside_inference_mode
@checked
def plan_task_gradient(
    task_loss: Callable[[Params, Batch, Batch], Any],
    params: Params,
    tasks: TaskBatch,
    *,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
    memory: int | None = None,
    task_count: int | None = None,
    deterministic: bool = False,
) -> Plan:
    """Decide the engine and the chunk size of `task_gradient`, as `plan_meta_gradient` does.

    Arguments are those of both.

    Raises:
        SettingError: nothing fits ``memory``, or what `task_gradient` refuses.
    """
    check_floating(params, "params")
    check_sets(tasks, 1)
    program = TaskLossGradient(task_loss, has_aux)
    return _decided(
        _Trial(lambda *_: program, params, tasks, 1, True),
        ["auto"],
        _Asked(engine, chunk_size, memory, task_count, deterministic),
    )


class _Asked(NamedTuple):
    """What a user leaves open or not."""

    engine: Engine
    chunk_size: int | None
    memory: int | None
    task_count: int | None
    deterministic: bool


class _Trial(NamedTuple):
    """A gradient by any engine and method, of few tasks and few inner steps."""

    program: Callable[[Method, int], Any]
    """For a method and a number of inner steps."""
    params: Params
    tasks: TaskBatch
    steps: int
    elementwise: bool

    def __call__(
        self, engine: Engine, method: Method, steps: int, params: Params, tasks: TaskBatch
    ) -> MetaGradient:
        chosen = choose_engine(engine, self.elementwise)
        program = self.program(method, steps)
        if params is not self.params and leaves(program.learnt):  # on copies, in float64
            program = program.with_learnt(doubled(program.learnt))
        return mean_gradient(program, params, tasks, engine=chosen, chunk_size=None)


def _decided(trial: _Trial, methods: Sequence[Method], asked: _Asked) -> Plan:
    check_engine(asked.engine)
    check_chunk(asked.chunk_size)
    for name, value in (("memory", asked.memory), ("task_count", asked.task_count)):
        if value is not None:
            check_whole(name, value, 1)
    engine, notes = asked.engine, list[str]()
    if engine == "auto":
        few, steps = _first(trial.tasks, 2), min(trial.steps, 1)
        # Adam makes a step that counts of the rounding of a gradient of zero
        method = "first_order" if methods[0] == "reptile" else methods[0]
        trials = Trials(lambda e, *given: trial(e, method, steps, *given), trial.params, few)
        engine, notes = engine_by_trial(trials, trial.elementwise)
    plan = Plan(engine, methods[0], asked.chunk_size, tuple(notes))
    if asked.memory is None:
        return plan
    leaf = leaves(trial.tasks)[0]
    cost = PredictedMemory(
        lambda n, m, k: trial(engine, m, k, trial.params, _first(trial.tasks, n)),
        leaf.device,
        len(leaf),
        asked.task_count or len(leaf),
        counted=asked.deterministic,
    )
    one_by_one = engine == "loop"
    fit = what_fits(
        asked.memory, cost, methods, trial.steps, asked.chunk_size, one_by_one=one_by_one
    )
    notes += [fit.note] if fit.note else []
    return replace(
        plan, method=fit.method, chunk_size=fit.chunk_size, notes=tuple(notes), peak=fit.peak
    )


def _first(tasks: TaskBatch, count: int) -> TaskBatch:
    few: TaskBatch = tree_map(lambda x: x[:count], tasks)
    return few
