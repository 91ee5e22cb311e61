"""Prototypical networks: a class is the mean of its support features; nothing is adapted.

Axes: T tasks, N samples, C classes (way), D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.absent_classes import absent
from metalearn.trainers.meta.feature_learner import FeatureLearner
from metalearn.types import Batch, Params

__all__ = ["NearestPrototype", "ProtoNet", "Prototypes", "class_means", "distance_logits"]

Distance = Literal["euclidean", "cosine"]
SCALE = 10.0
"""Where the scale of cosines starts."""


class Prototypes(NamedTuple):
    """What one network makes of a support set."""

    params: Params
    """Of the network."""
    means: Tensor
    """``[C, D]``: of each class, the mean of its support features."""


class ProtoNet(FeatureLearner):
    """Logits −‖f(x) − c_k‖² with c_k the mean feature of class k in the support set.

    By ``distance="cosine"`` they are s · cos(f(x), c_k) with a scale s that is learnt beside the
    network (``learnt.scale``) and starts at 10. There is no inner loop: K is 0, and classes may be
    of any number in any split; the paper trains with more of them than it tests with.

    Args:
        module: as for `FeatureLearner`.
        distance: ``"euclidean"`` (its square) or ``"cosine"``.
        settings: those of `FeatureLearner`.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.

    Source: Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017;
    the learnt scale: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting",
    CVPR 2018.
    """

    label = "protonet"
    called = "a prototypical network"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        distance: Distance = "euclidean",
        **settings: Annotated[Any, FeatureLearner],
    ) -> None:
        if distance not in get_args(Distance):
            accepted = f"one of {', '.join(get_args(Distance))} is needed"
            raise SettingError("distance", distance, accepted)
        super().__init__(module, **settings)
        self.distance = distance
        if distance == "cosine":
            self.learn("scale", SCALE)

    def state_of(self, params: Params, support: Batch) -> Prototypes:
        """The mean features of the classes in one task's support set."""
        return Prototypes(params, class_means(*self.described(params, support)))

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[Prototypes]:
        """One state: the prototypes."""
        self.count_steps(steps)
        yield self.state_of(params, support)

    def predict(self, state: Prototypes, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        features = self.apply(state.params, self.buffers, inputs)
        return prototype_logits(features, state.means, state.params.get("learnt.scale"))

    def as_module(self, module: nn.Module, state: Prototypes) -> NearestPrototype:
        """The network and the prototypes."""
        scale = state.params.get("learnt.scale")
        return NearestPrototype(
            module, state.means.detach(), None if scale is None else scale.detach()
        )


class NearestPrototype(nn.Module):
    """A network with the mean features of classes: ``module(x)`` gives logits ``[N, C]``.

    Args:
        network: maps inputs to features ``[N, D]``.
        prototypes: ``[C, D]``.
        scale: a scalar, of cosines; None is for squared distances.
    """

    prototypes: Tensor
    scale: Tensor | None

    @checked
    def __init__(self, network: nn.Module, prototypes: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]`` of inputs ``[N, ...]``."""
        return prototype_logits(self.network(inputs), self.prototypes, self.scale)


def class_means(features: Tensor, probabilities: Tensor) -> Tensor:
    """``[C, D]``: of each class the mean feature, by probabilities ``[N, C]``; 0 of one absent."""
    weights = torch.where(absent(probabilities), 1.0, probabilities.sum(0))
    return probabilities.mT @ features / weights[:, None]


def prototype_logits(features: Tensor, means: Tensor, scale: Tensor | None) -> Tensor:
    """``[N, C]``: `distance_logits`, or with a scale, that times the cosines."""
    if scale is None:
        return distance_logits(features, means)
    return scale * unit_vectors(features) @ unit_vectors(means).mT


def distance_logits(features: Tensor, means: Tensor) -> Tensor:
    """−‖f_n − c_k‖², ``[N, C]``, of features ``[N, D]`` and class means ``[C, D]``."""
    return -(features[:, None] - means).square().sum(-1)


def unit_vectors(features: Tensor) -> Tensor:
    """Rows of length 1, ``[N, D]``; of less than 1e-6 there is no direction: 0, with slope 0."""
    square = features.square().sum(-1, keepdim=True)
    short = square < 1e-12
    return torch.where(short, 0.0, features * torch.where(short, 1.0, square).rsqrt())
