"""What networks are trained to predict, and how wrong they are: the losses by name, or one's own.

Axes: B samples of a batch, C outputs, D targets of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from metalearn.core.curvature.gaussian import gaussian_nll, gaussian_nll_of_samples
from metalearn.core.curvature.likelihood import LikelihoodName
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.near_names import with_nearest
from metalearn.signatures import check_settings, takes_arguments
from metalearn.trainers.supervised.focal import FocalLoss
from metalearn.trainers.supervised.member_gradients import Criterion, smoothed_cross_entropy

__all__ = [
    "CROSS_ENTROPY",
    "LossName",
    "LossSetting",
    "SupervisedLoss",
    "chosen_loss",
    "squared_error",
]

LossName = Literal["cross_entropy", "gaussian_nll", "mse", "focal"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
"""From outputs ``[B, C]`` and targets ``[B]`` or ``[B, D]`` to losses ``[B]``, or to their mean."""

LossSetting = LossName | Mapping[str, Any] | LossFunction | None
"""A mapping is ``{"name": "focal", "gamma": 1.0}``: a name with what else it takes."""

_OF_CLASSES = ("cross_entropy", "focal")


@dataclass(frozen=True)
class SupervisedLoss:
    """A mean loss, and what it says about the outputs."""

    name: str
    mean: LossFunction
    """From outputs ``[..., B, C]`` and targets to a scalar, the mean also over further axes."""
    each: LossFunction
    """From the same to the losses of samples, ``[..., B]``."""
    criterion: Criterion
    """The mean with weights of samples, and smoothing of labels, which only cross-entropy knows."""
    widths: tuple[int, ...]
    """How many outputs of a sample it takes, any of these."""
    likelihood: LikelihoodName | None = None
    """Of which it is −log p up to constants; None of focal and of a function of one's own."""
    variance: float = 1.0
    """σ² of a gaussian likelihood."""

    def weighted_mean(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """(1/B)·Σ w_i·ℓ_i, a scalar, the mean also over further axes; ``mean`` without weights."""
        if weights is None:
            return self.mean(outputs, targets)
        return _weighted(self.each(outputs, targets), weights)

    @property
    def own(self) -> bool:
        """Whether it is no −log p that is known: focal, or a function of the user's."""
        return self.likelihood is None

    @property
    def no_likelihood(self) -> str:
        """Why there are no Fisher matrices; empty where there are."""
        return f"no likelihood is known of the loss {self.name}" if self.own else ""

    def of_models(self) -> dict[str, Any]:
        """What `PredictiveModels` are to know of it."""
        criterion = self.mean if self.own else None
        return {"likelihood": self.likelihood, "variance": self.variance, "criterion": criterion}


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    rows, labels = outputs.flatten(0, -2), targets.expand(outputs.shape[:-1])
    found = F.cross_entropy(rows, labels.flatten(), reduction="none")
    return found.reshape(labels.shape)


CROSS_ENTROPY = SupervisedLoss(
    "cross_entropy", F.cross_entropy, _cross_entropies, smoothed_cross_entropy, (), "categorical"
)
"""That of any number of classes."""


def chosen_loss(loss: LossSetting, data: SupervisedData) -> SupervisedLoss:
    """The loss of a setting, for data that it fits; None is cross_entropy or gaussian_nll.

    Raises:
        SettingError: an unknown name, or a loss of another kind of targets than the data have.
    """
    regression = data.kind == "regression"
    if isinstance(loss, type):
        raise SettingError("loss", loss, f"a function is needed, as {loss.__name__}() may be one")
    if callable(loss):
        return _of_function(loss, data)
    if loss is None:
        loss = "gaussian_nll" if regression else "cross_entropy"
    loss, further = _apart(loss)
    known = get_args(LossName)
    if not isinstance(loss, str) or loss not in known:
        accepted = f"{', '.join(known)}, null or a function is needed"
        raise SettingError("loss", loss, with_nearest(accepted, loss, known))
    if regression and loss in _OF_CLASSES:
        accepted = "gaussian_nll, mse or a function is needed for real targets"
        raise SettingError("loss", loss, accepted)
    if not regression and loss not in _OF_CLASSES:
        raise SettingError("loss", loss, "cross_entropy, focal or a function is needed for classes")
    if loss == "focal":
        return replace(_of_function(_focal(further), data), name=loss)
    if further:
        raise SettingError("loss", dict(further), f"{loss} has no settings, so its name is needed")
    return _named(loss, data.outputs)


def _apart(loss: Any) -> tuple[Any, Mapping[str, Any]]:
    """A name, and the settings that were given with it."""
    if not isinstance(loss, Mapping):
        return loss, {}
    if "name" not in loss:
        accepted = "the name of a loss is needed among its settings, as in {name: focal, gamma: 2}"
        raise SettingError("loss", dict(loss), accepted)
    return loss["name"], {key: value for key, value in loss.items() if key != "name"}


def _focal(settings: Mapping[str, Any]) -> FocalLoss:
    check_settings(FocalLoss, settings, "loss.")
    try:
        return FocalLoss(**settings)
    except SettingError as error:
        raise SettingError(f"loss.{error.setting}", error.value, error.accepted) from error


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of (y − f)² over samples and targets, a scalar; ``[..., B, D]`` and ``[B, D]``."""
    return _squared_errors(outputs, targets).mean()


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(-1)


def _named(name: LossName, outputs: int) -> SupervisedLoss:
    """A loss of data with so many classes, or targets of a sample."""
    if name == "cross_entropy":
        return replace(CROSS_ENTROPY, widths=(outputs,))
    if name == "gaussian_nll":
        both = (gaussian_nll, gaussian_nll_of_samples)
        criterion, width = _without_smoothing(*both), 2 * outputs
        return SupervisedLoss(name, *both, criterion, (width,), "heteroscedastic_gaussian")
    both = (squared_error, _squared_errors)
    criterion = _without_smoothing(*both)
    return SupervisedLoss(name, *both, criterion, (outputs,), "gaussian", outputs / 2)


def _of_function(loss: LossFunction, data: SupervisedData) -> SupervisedLoss:
    """A loss of one's own; of real targets its outputs are means, or means and log-variances.

    Raises:
        SettingError: it takes more or fewer than two arguments.
    """
    if not takes_arguments(loss, 2):
        raise SettingError("loss", loss, "a function of two, outputs and targets, is needed")
    outputs = data.outputs
    both = (_mean_of(loss), _each_of(loss))
    widths = (outputs, 2 * outputs) if data.kind == "regression" else (outputs,)
    name = getattr(loss, "__name__", type(loss).__name__)
    return SupervisedLoss(name, *both, _without_smoothing(*both), widths)


def _without_smoothing(mean: LossFunction, each: LossFunction) -> Criterion:
    def criterion(
        outputs: Tensor, targets: Tensor, smoothing: Tensor, weights: Tensor | None
    ) -> Tensor:
        if weights is None:
            return mean(outputs, targets)
        return _weighted(each(outputs, targets), weights)

    return criterion


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """(1/B)·Σ w_i·ℓ_i of losses ``[..., B]`` and weights ``[B]``, the mean over further axes."""
    return (losses * weights.to(losses.dtype)).mean()


def _mean_of(loss: LossFunction) -> LossFunction:
    """The mean of a function of the user's, over further axes of the outputs too.

    Shapes and types alone are looked at, so that it holds inside every transform.
    """

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        found = _called(loss, outputs, targets)
        return found.mean() if found.dim() else found

    return mean


def _each_of(loss: LossFunction) -> LossFunction:
    """The losses of samples of a function of the user's, ``[..., B]``, which a mean cannot tell."""

    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        found = _called(loss, outputs, targets)
        if not found.dim():
            accepted = (
                f"losses [{outputs.shape[-2]}], one for each sample, are needed where samples are "
                "weighted or scored one by one, not their mean (reduction='none')"
            )
            raise SettingError("shape of loss", [], accepted)
        return found.reshape(outputs.shape[:-1])

    return each


def _called(loss: LossFunction, outputs: Tensor, targets: Tensor) -> Tensor:
    """What a function of the user's gives of outputs ``[..., B, C]``: ``[...·B]``, or their mean.

    Raises:
        SettingError: anything else.
    """
    ahead = outputs.shape[:-2]
    rows = outputs.flatten(0, -2)
    found = loss(rows, targets.expand(*ahead, *targets.shape).flatten(0, len(ahead)))
    if not isinstance(found, Tensor) or found.shape not in ((), rows.shape[:1]):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        accepted = f"losses [{len(rows)}], one for each sample, or their mean [] are needed"
        raise SettingError("shape of loss", shape, accepted)
    if not found.is_floating_point():
        raise SettingError("type of loss", found.dtype, "a floating-point type is needed")
    return found
