"""Prototypical networks: a class is the mean of its support features; nothing is adapted.

Axes: T tasks, N samples, C classes (way), D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metalearn.core import Engine, MetaGradient, Plan, plan_task_gradient, task_gradient
from metalearn.core._functorch import is_functorch_wrapped_tensor
from metalearn.core.checks import check_pair
from metalearn.core.loss_checks import unused_parameters
from metalearn.core.module.functionalize import Norm
from metalearn.core.targets import is_label
from metalearn.core.tree import leaves, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["NearestPrototype", "ProtoNet", "Prototypes", "distance_logits"]


class Prototypes(NamedTuple):
    """What one network makes of a support set."""

    params: Params
    """Of the network."""
    means: Tensor
    """``[C, D]``: of each class, the mean of its support features."""


class ProtoNet(Learner):
    """Logits −‖f(x) − c_k‖² with c_k the mean feature of class k in the support set.

    There is no inner loop: K is 0, and classes may be of any number in any split.

    Args:
        module: maps inputs ``[N, ...]`` to features ``[N, D]``; or an `Ensemble` of such modules.
        kind: ``"classification"``.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        norm: None, or what to make of batch and instance norms: ``"batch_stats"`` (of the batch
            at hand, none kept), ``"group"`` (GroupNorm).
        chunk_size: tasks at a time; None takes a whole meta-batch.
        features: D, which a trainer holds the module to; None takes what it gives.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.

    Source: Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
    """

    needs = "features"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        kind: Literal["classification", "regression"] = "classification",
        engine: Engine = "auto",
        norm: Norm | None = None,
        chunk_size: int | None = None,
        features: int | None = None,
    ) -> None:
        if kind == "regression":
            raise SettingError("kind", kind, "a prototypical network needs tasks of classification")
        if norm is not None and not (isinstance(norm, str) and norm in get_args(Norm)):
            raise SettingError("norm", norm, f"one of {', '.join(get_args(Norm))} is needed")
        if chunk_size is not None:
            check_whole("chunk_size", chunk_size, 1)
        super().__init__(module, kind=kind, norm=norm, engine=engine)
        if features is not None:
            check_whole("features", features, 1)
        self.chunk_size, self.features = chunk_size, features
        self._way = 0  # of the tasks that were checked last

    def task_loss(self, params: Params, support: Batch, query: Batch) -> Tensor:
        """Cross-entropy of one task's queries, a scalar."""
        return self.criterion(self.predict(self.state_of(params, support), query[0]), query[1])

    def state_of(self, params: Params, support: Batch) -> Prototypes:
        """The mean features of the classes in one task's support set."""
        inputs, targets = check_pair(support, "support")
        features = self.apply(params, self.buffers, inputs)
        return Prototypes(params, class_means(features, targets, self._classes(targets)))

    def gradient(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> MetaGradient:
        """See `Learner.gradient`."""
        self.check(tasks)
        engine, chunk = self.batching
        with self.refusing_inputs(tasks):
            found: MetaGradient = self.network.task_gradient(
                self.task_loss, params, tasks, engine=engine, chunk_size=chunk
            )
        return found

    def task_gradients(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> Params:
        """The gradient of each task at one network's parameters, leaves ``[T, ...]``."""
        self.check(tasks)

        def of(t: int) -> Params:
            alone = tree_map(lambda value: value[t : t + 1], tasks)
            return task_gradient(self.task_loss, params, alone, engine=self.batching[0]).grads

        rows = [of(t) for t in range(len(leaves(tasks)[0]))]
        return tree_map(lambda *values: torch.stack(values), *rows)

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[Prototypes]:
        """One state: the prototypes."""
        self.count_steps(steps)
        yield self.state_of(params, support)

    def predict(self, state: Prototypes, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        return distance_logits(self.apply(state.params, self.buffers, inputs), state.means)

    def as_module(self, module: nn.Module, state: Prototypes) -> NearestPrototype:
        """The network and the prototypes."""
        return NearestPrototype(module, state.means.detach())

    @checked
    def prepare(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """Decide on an engine by trials on ``tasks``; kept in ``plan``."""
        check_whole("task_count", task_count, 1)
        self.check(tasks)

        def loss(params: Params, support: Batch, query: Batch) -> Tensor:
            check()
            return self.task_loss(params, support, query)

        plan = plan_task_gradient(
            loss,
            self.network.rows()[0],
            tasks,
            engine=self.batching[0],
            chunk_size=self.chunk_size,
            task_count=task_count * (self.network.count or 1),
            deterministic=deterministic,
        )
        self.plan = self.for_members(plan)
        return self.plan

    def unused_in(self, task: TaskBatch) -> list[str]:
        """Those of the loss of the task."""
        self._way = way_of(tree_map(lambda value: value[None], task))
        return unused_parameters(self.task_loss, self.network.rows()[0], *task)

    def count_steps(self, steps: int | None) -> int:
        """0.

        Raises:
            SettingError: a number of inner steps that is not 0.
        """
        if steps:
            raise SettingError("steps", steps, "protonet has no inner loop, so 0 is needed")
        return super().count_steps(steps)

    @property
    def asked(self) -> Mapping[str, Any]:
        """Engine and, of one network, chunk size; members share chunks."""
        asked: dict[str, Any] = {"engine": self._engine}
        return asked if self.network.count else {**asked, "chunk_size": self.chunk_size}

    @property
    def batching(self) -> tuple[Engine, int | None]:
        """As planned, or as set."""
        engine, chunk = super().batching
        return engine, self.chunk_size if self.plan is None else chunk

    def _count_classes(self, tasks: TaskBatch, inputs: Any) -> int:
        self._way = way_of(tasks)
        return self._way

    def _classes(self, targets: Tensor) -> int:
        """C, of labels that can be read, or of the tasks that are at hand."""
        if not is_label(targets):
            return targets.shape[-1]
        if targets.device.type == "cpu" and not is_functorch_wrapped_tensor(targets):
            return int(targets.max()) + 1
        if not self._way:
            raise SettingError("tasks", "unknown", "check(tasks) is needed before a transform")
        return self._way


class NearestPrototype(nn.Module):
    """A network with the mean features of classes: ``module(x)`` gives logits ``[N, C]``.

    Args:
        network: maps inputs to features ``[N, D]``.
        prototypes: ``[C, D]``.
    """

    prototypes: Tensor

    @checked
    def __init__(self, network: nn.Module, prototypes: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("prototypes", prototypes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]`` of inputs ``[N, ...]``."""
        return distance_logits(self.network(inputs), self.prototypes)


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """``[C, D]``: of each class the mean feature; where targets are probabilities, weighted."""
    if is_label(targets):
        every = torch.arange(classes, device=targets.device)
        weights = (targets[:, None] == every).to(features.dtype)
    else:
        weights = targets.to(features.dtype)
    return weights.mT @ features / weights.sum(0)[:, None]


def distance_logits(features: Tensor, means: Tensor) -> Tensor:
    """−‖f_n − c_k‖², ``[N, C]``, of features ``[N, D]`` and class means ``[C, D]``."""
    return -(features[:, None] - means).square().sum(-1)


def way_of(tasks: TaskBatch) -> int:
    """C of tasks: by their class ids, where these are known, else by their labels.

    Raises:
        SettingError: a class without a support sample.
    """
    targets = tasks.support[1]
    if not is_label(targets):
        return int(targets.shape[-1])
    ids = getattr(tasks, "class_ids", None)
    way = int(ids.shape[-1]) if ids is not None else int(targets.max()) + 1
    if targets.device.type == "cpu":
        every = torch.arange(way)
        found = (targets[..., None] == every).any(-2)
        if not bool(found.all()):
            missing = int((~found).nonzero()[0, -1])
            accepted = "every class of a task needs a support sample"
            raise SettingError("targets of the support set", f"none of class {missing}", accepted)
    return way
