"""A meta-learner: a module, how it adapts, and how it is scored.

Axes: T tasks, K inner steps, N query samples, C classes.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    Eager,
    Engine,
    Implicit,
    InnerOptimizer,
    MetaGradient,
    Method,
    Plan,
    adam,
    along_adaptation,
    convert_norm,
    functionalize,
    inner_trajectory,
    meta_gradient,
    plan_meta_gradient,
    sgd,
)
from metalearn.core.adapt import last_of
from metalearn.core.memory import describe_bytes, free_memory, is_out_of_memory, parse_bytes
from metalearn.core.module import Norm
from metalearn.core.tree import leaves, match_names, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["MAML", "MetaLearner", "TaskScores", "mean_interval"]

InnerName = Literal["sgd", "adam"]
_OPTIMIZERS: dict[str, Callable[[float], InnerOptimizer]] = {"sgd": sgd, "adam": adam}

_QUERIES_AT_A_TIME = 16
_SHARE_OF_FREE = 0.8
_PLANNED = ("engine", "method", "chunk_size")


@dataclass(frozen=True)
class MAML:
    """How a learner adapts, and how the gradient through adaptation is taken.

    Attributes:
        inner_lr: step size of the inner loop, above 0.
        inner_steps: inner steps in training, at least 0.
        eval_steps: inner steps in validation and test, at least 0.
        first_order: ignore second derivatives (FOMAML); the same as ``method="first_order"``.
        method: ``"reverse"``, ``"mixed"`` (both exact), ``"first_order"``, ``"implicit"``; see
            `metalearn.core.meta_gradient`. ``"auto"`` is exact.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        inner_optimizer: ``"sgd"`` or ``"adam"``.
        frozen: shell-style pattern, or several, over names of parameters that the inner loop
            leaves alone (``"blocks.*"`` adapts the head alone).
        norm: None, or what to make of batch and instance norms: ``"batch_stats"`` (of the batch
            at hand, none kept), ``"group"`` (GroupNorm).
        chunk_size: tasks at a time; None takes a whole meta-batch, or what fits ``memory``.
        memory: what a meta-gradient may take, for example ``"8GB"``; None is what the device has
            free. With ``method="auto"`` it decides between reverse and mixed.
        regularization: λ of the implicit method's inner loss L(φ) + λ/2·‖φ − θ‖², above 0.
        cg_iterations: conjugate gradient iterations of the implicit method, at least 1.

    Raises:
        SettingError: a value out of range.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1
    eval_steps: int = 3
    first_order: bool = False
    method: Method = "auto"
    engine: Engine = "auto"
    inner_optimizer: InnerName = "sgd"
    frozen: str | Sequence[str] | None = None
    norm: Norm | None = None
    chunk_size: int | None = None
    memory: str | int | None = None
    regularization: float = 1.0
    cg_iterations: int = 5

    def __post_init__(self) -> None:
        check_whole("inner_steps", self.inner_steps, 0)
        check_whole("eval_steps", self.eval_steps, 0)
        if self.chunk_size is not None:
            check_whole("chunk_size", self.chunk_size, 1)
        if not 0 < self.inner_lr < math.inf:
            raise SettingError("inner_lr", self.inner_lr, "a finite number above 0 is needed")
        check_whole("cg_iterations", self.cg_iterations, 1)
        if not 0 < self.regularization < math.inf:
            raise SettingError(
                "regularization", self.regularization, "a finite number above 0 is needed"
            )
        if self.memory is not None:
            parse_bytes(self.memory)
        choices = (
            ("inner_optimizer", InnerName),
            ("norm", Norm),
            ("method", Method),
            ("engine", Engine),
        )
        for name, known in choices:
            value = getattr(self, name)
            if value not in get_args(known) and not (name == "norm" and value is None):
                accepted = ", ".join(get_args(known))
                raise SettingError(name, value, f"one of {accepted} is needed")
        if self.first_order and self.method not in ("auto", "first_order"):
            raise SettingError("method", self.method, "auto is needed with first_order=true")


class TaskScores(NamedTuple):
    """How T tasks went, before and after each of K inner steps."""

    losses: Tensor
    """``[T, K+1]``: mean query loss."""
    accuracies: Tensor | None
    """``[T, K+1]``: share of queries classified rightly; None for regression."""
    predictions: Tensor
    """``[T, K+1, N]`` predicted classes, or ``[T, K+1, N, outputs]`` for regression."""


class MetaLearner:
    """A module whose parameters are the starting point of adaptation.

    The learner shares the module's parameters: an optimiser that steps ``learner.module`` steps
    the learner.

    Args:
        module: maps inputs ``[N, ...]`` to logits ``[N, C]`` or values ``[N, outputs]``.
        maml: how it adapts.
        kind: ``"classification"`` (cross-entropy, accuracy) or ``"regression"`` (mean squared
            error).

    Raises:
        SettingError: a module with layers that cannot work, by name; an unknown kind; a pattern in
            ``maml.frozen`` that matches no parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
    ) -> None:
        if kind not in ("classification", "regression"):
            raise SettingError("kind", kind, "classification or regression is needed")
        self.maml = maml or MAML()
        self.kind = kind
        self.module = convert_norm(module, self.maml.norm) if self.maml.norm else module
        self._only_loop = ""
        self.apply, self.params, self.buffers = functionalize(
            self.module, vectorize=self._vectorize()
        )
        self.plan: Plan | None = None
        match_names(self.params, self.maml.frozen, "maml.frozen")
        self.optimizer = _OPTIMIZERS[self.maml.inner_optimizer](self.maml.inner_lr)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean loss of a batch ``(inputs, targets)`` at given parameters, a scalar."""
        inputs, targets = batch
        return self._criterion(self.apply(params, self.buffers, inputs), targets)

    def settle(self, tasks: TaskBatch, task_count: int) -> Plan:
        """Decide what ``maml`` leaves to ``"auto"``, by trials on ``tasks``; kept in ``plan``.

        Args:
            tasks: two are enough.
            task_count: T of the meta-gradients to come.

        Raises:
            SettingError: nothing fits ``maml.memory``.
        """
        device = next(iter(self.params.values())).device
        if self.maml.memory is None:
            free = free_memory(device)
            budget = None if free is None else int(_SHARE_OF_FREE * free)
        else:
            budget = parse_bytes(self.maml.memory)
        settings = self._settings()
        try:
            plan = plan_meta_gradient(
                self.loss, self.params, tasks, memory=budget, task_count=task_count, **settings
            )
        except SettingError as error:
            raise SettingError(f"maml.{error.setting}", error.value, error.accepted) from error
        if self._only_loop:
            plan = replace(plan, notes=(self._only_loop, *plan.notes))
        self.plan = plan
        return plan

    def meta_gradient(self, tasks: TaskBatch) -> MetaGradient:
        """The meta-gradient at the module's parameters; see `metalearn.core.meta_gradient`.

        By ``plan`` where there is one (`settle`), else as ``maml`` says.

        Raises:
            MemoryError: it ran out; the message says what would fit.
        """
        settings = self._settings()
        try:
            return meta_gradient(self.loss, self.params, tasks, **settings)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        raise MemoryError(self._what_fits(tasks))

    def adapt(self, support: Batch, *, steps: int | None = None) -> nn.Module:
        """A copy of the module, adapted to one support set ``(inputs [N, ...], targets [N])``.

        The copy is an ordinary module with nothing of the learner in it: call it, save it, move
        it. Where it normalises with the statistics of the batch at hand, a prediction depends on
        the other inputs of its batch.

        Args:
            support: the labelled examples.
            steps: inner steps; None takes ``maml.eval_steps``.
        """
        points = inner_trajectory(
            self._inner_loss,
            self.params,
            support,
            optimizer=self.optimizer,
            steps=self._steps(steps),
            frozen=self.maml.frozen,
            calculus=Eager(),
        )
        params = last_of(points).params
        adapted = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                parameter.copy_(params[name])
                parameter.grad = None
        return adapted.eval()

    def score(
        self, tasks: TaskBatch, *, steps: int | None = None, inductive: bool = False
    ) -> TaskScores:
        """Adapt to each task and score its query set at every inner step 0..K.

        Args:
            tasks: ``TaskBatch``, every leaf ``[T, N, ...]``.
            steps: K; None takes ``maml.eval_steps``.
            inductive: False shares normalisation statistics over a task's query set
                (transductive, what the MAML papers report); True predicts each query alone, in a
                batch with the support set and no other query (Nichol, Achiam and Schulman, "On
                First-Order Meta-Learning Algorithms", 2018, section 6.1).
        """
        settings = self._settings()
        vectorize = settings["engine"] != "loop"

        def visit(params: Params, support: Batch, query: Batch) -> tuple[Tensor, Tensor]:
            beside = support[0] if inductive else None
            output = self._predict(params, query[0], beside, vectorize)
            return self._criterion(output, query[1]), output

        losses, outputs = along_adaptation(
            visit,
            self._inner_loss,
            self.params,
            tasks,
            optimizer=self.optimizer,
            steps=self._steps(steps),
            engine="vmap" if vectorize and inductive else settings["engine"],
            chunk_size=settings["chunk_size"],
            frozen=self.maml.frozen,
        )
        if self.kind == "regression":
            return TaskScores(losses, None, outputs)
        predictions = outputs.argmax(-1)
        right = predictions == tasks.query[1][:, None]
        return TaskScores(losses, right.to(losses.dtype).mean(-1), predictions)

    def _vectorize(self) -> bool:
        """Whether tasks can be batched by vmap, as far as the layers tell."""
        if self.maml.engine == "auto":
            try:
                functionalize(self.module)
            except SettingError as error:
                functionalize(self.module, vectorize=False)  # or is refused altogether
                self._only_loop = str(error)
        return self.maml.engine != "loop" and not self._only_loop

    def _settings(self) -> dict[str, Any]:
        """Keyword arguments of `metalearn.core.meta_gradient`, by ``plan`` where there is one."""
        planned = {name: getattr(self.plan, name) for name in _PLANNED} if self.plan else {}
        return {
            "optimizer": self.optimizer,
            "steps": self.maml.inner_steps,
            "method": "first_order" if self.maml.first_order else self.maml.method,
            "engine": "loop" if self._only_loop else self.maml.engine,
            "chunk_size": self.maml.chunk_size,
            "frozen": self.maml.frozen,
            "implicit": Implicit(self.maml.regularization, self.maml.cg_iterations),
            **planned,
        }

    def _what_fits(self, tasks: TaskBatch) -> str:
        """A sentence for a meta-gradient that ran out of memory."""
        count = len(leaves(tasks)[0])
        now = self.plan or Plan(self.maml.engine, self.maml.method, self.maml.chunk_size)
        few = tree_map(lambda x: x[:2], tasks)
        exact = {**self._settings(), "chunk_size": None}
        if not self.maml.first_order and self.maml.method in ("auto", "reverse"):
            exact["method"] = "auto"
        search = partial(plan_meta_gradient, self.loss, self.params, few, task_count=count)
        size = now.chunk_size or count
        head = f"out of memory with method {now.method}, {size} of {count} tasks at a time"
        try:
            whole = search(memory=sys.maxsize, **{**exact, "method": now.method}).peak or 0
            fitting = search(memory=int(whole * size / count / 2), **exact)
        except (SettingError, MemoryError, RuntimeError):
            return f"{head}; maml.method=mixed with maml.chunk_size=1 takes least"
        return (
            f"{head}; about {describe_bytes(fitting.peak or 0)} would do with "
            f"maml.method={fitting.method} maml.chunk_size={fitting.chunk_size or count}"
        )

    def _inner_loss(self, params: Params, batch: Batch) -> Tensor:
        """What adaptation descends: the loss, and the implicit method's pull towards the start."""
        loss = self.loss(params, batch)
        if self.maml.method != "implicit":
            return loss
        moved = torch.stack([((params[n] - p) ** 2).sum() for n, p in self.params.items()]).sum()
        return loss + 0.5 * self.maml.regularization * moved

    def _predict(
        self, params: Params, inputs: Tensor, support: Tensor | None, vectorize: bool
    ) -> Tensor:
        """Outputs for a query set, or, with a support set, for each query beside that alone."""

        def together(batch: Tensor) -> Tensor:
            outputs: Tensor = self.apply(params, self.buffers, batch)
            return outputs

        if support is None:
            return together(inputs)

        def alone(query: Tensor) -> Tensor:
            return together(torch.cat([support, query[None]]))[-1]

        if vectorize:
            return torch.vmap(alone, chunk_size=_QUERIES_AT_A_TIME)(inputs)
        return torch.stack([alone(query) for query in inputs])

    def _criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.kind == "classification":
            return F.cross_entropy(outputs, targets)
        return F.mse_loss(outputs, targets)

    def _steps(self, steps: int | None) -> int:
        count = self.maml.eval_steps if steps is None else steps
        check_whole("steps", count, 0)
        return count


def mean_interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over tasks and half-width of its 95 % interval: 1.96 · s / √T, s with divisor T − 1.

    Args:
        values: ``[T, ...]``.

    Returns:
        Two tensors ``[...]``; the half-width is NaN-free and 0 where T is 1.
    """
    count = values.shape[0]
    spread = values.std(0) if count > 1 else torch.zeros_like(values[0])
    return values.mean(0), 1.96 * spread / math.sqrt(count)
