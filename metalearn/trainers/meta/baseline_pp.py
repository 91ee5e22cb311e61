"""Baseline++: cosines to learnt class weights, in training and, fitted anew, for each task.

Axes: N samples, B samples of a batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from torch import Tensor, nn

from metalearn.core.checks import check_number
from metalearn.errors import check_whole
from metalearn.signatures import checked
from metalearn.trainers.meta.absent_classes import among_present
from metalearn.trainers.meta.protonet import (
    NearestPrototype,
    Prototypes,
    class_means,
    prototype_logits,
    unit_vectors,
)
from metalearn.trainers.meta.sample_learner import CLASSIFIER, SampleLearner
from metalearn.types import Batch, Params

__all__ = ["BaselinePlusPlus", "cosine_weights"]


class BaselinePlusPlus(SampleLearner):
    """Training: logits s · cos(f(x), w_c) of all training classes, by their cross-entropy.

    At a new task: the same with weights v_c of its own classes, which start at the directions of
    the class means and take gradient steps on the support set, the network as it is. The scale s
    is learnt beside the network in training (``learnt.scale``) and kept in a task.

    Args:
        module: as for `FeatureLearner`.
        head_steps: gradient steps of v on the whole support set, at least 0.
        head_lr: their size, above 0.
        scale: where s starts.
        settings: those of `SampleLearner`.

    Raises:
        SettingError: a value out of range, a module that cannot work, tasks of regression.

    Source: Chen, Liu, Kira, Wang and Huang, "A Closer Look at Few-shot Classification", ICLR 2019.
    In the paper's code s is fixed (2 in a task), the norms of w count as further scales, and v
    starts at random and takes 100 epochs of minibatches of 4, with momentum and weight decay. Here
    v starts where the order of labels and of the support set does not matter.
    """

    label = called = "baseline_pp"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        head_steps: int = 100,
        head_lr: float = 0.1,
        scale: float = 10.0,
        **settings: Annotated[Any, SampleLearner],
    ) -> None:
        check_whole("head_steps", head_steps, 0)
        check_number("head_lr", head_lr, above=0)
        check_number("scale", scale)
        super().__init__(module, **settings)
        self.head_steps, self.head_lr = head_steps, head_lr
        self.learn("scale", scale)

    def class_logits(self, params: Params, features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of the training classes."""
        return prototype_logits(features, params[CLASSIFIER], params["learnt.scale"])

    def fit(
        self, params: Params, support: Batch, *, steps: int | None = None
    ) -> Iterator[Prototypes]:
        """One state: the weights of the task's classes."""
        self.count_steps(steps)
        features, targets = self.described(params, support)
        scale, size = params["learnt.scale"], self.head_lr
        yield Prototypes(params, cosine_weights(features, targets, scale, self.head_steps, size))

    def predict(self, state: Prototypes, inputs: Tensor) -> Tensor:
        """Logits ``[N, C]``."""
        features = self.apply(state.params, self.buffers, inputs)
        return prototype_logits(features, state.means, state.params["learnt.scale"])

    def as_module(self, module: nn.Module, state: Prototypes) -> NearestPrototype:
        """The network and the weights of the task's classes."""
        scale = state.params["learnt.scale"].detach()
        return NearestPrototype(module, state.means.detach(), scale)


def cosine_weights(
    features: Tensor, targets: Tensor, scale: Tensor, steps: int, size: float
) -> Tensor:
    """V ``[C, D]`` after gradient steps on the mean cross-entropy of s · cos(x_n, v_c).

    With P the softmax of the logits and v̂ = v / ‖v‖, the slope of the mean over N samples is
    ∂/∂v̂ = s/N · (P − Y)ᵀ X̂, and ∂/∂v = (I − v̂ v̂ᵀ) ∂/∂v̂ / ‖v‖. It starts at directions of class
    means. Rows of Y that are zero (padding) count nowhere, nor do columns (absent classes).

    Args:
        features: X ``[N, D]``.
        targets: Y ``[N, C]``, rows that add up to 1.
        scale: s.
        steps: how many.
        size: of a step.
    """
    real = targets.detach().sum(-1, keepdim=True) != 0
    directions = unit_vectors(features) * real
    weights = unit_vectors(class_means(features * real, targets))
    count = real.sum()
    for _ in range(steps):
        units = unit_vectors(weights)
        logits = among_present(scale * directions @ units.mT, targets)
        wrong = (logits.softmax(-1) - targets) * real  # [N, C]
        slope = scale / count * wrong.mT @ directions
        across = slope - (slope * units).sum(-1, keepdim=True) * units
        norms = weights.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        weights = weights - size * across / norms
    return weights
