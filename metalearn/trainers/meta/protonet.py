"""Prototypical networks: a class is the mean of its support features; nothing is adapted.

Axes: T tasks, N samples, C classes (way), D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.core import Engine
from metalearn.core.checks import check_pair
from metalearn.core.module.functionalize import Norm
from metalearn.core.targets import is_label
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.protocol import Learner
from metalearn.types import Batch, Params

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
        how: Any = {"engine": engine, "norm": norm, "chunk_size": chunk_size, "features": features}
        super().__init__(module, kind=kind, **how)

    def state_of(self, params: Params, support: Batch) -> Prototypes:
        """The mean features of the classes in one task's support set."""
        inputs, targets = check_pair(support, "support")
        features = self.apply(params, self.buffers, inputs)
        return Prototypes(
            params, class_means(features, targets, self.criterion.classes_of(targets))
        )

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

    def count_steps(self, steps: int | None) -> int:
        """0.

        Raises:
            SettingError: a number of inner steps that is not 0.
        """
        if steps:
            raise SettingError("steps", steps, "protonet has no inner loop, so 0 is needed")
        return super().count_steps(steps)


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
