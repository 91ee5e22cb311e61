"""What is learnt where training runs are shaped, and the run that it shapes.

Axes: N examples of the training part, K steps of a run, B samples of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.network_run import StepBatch
from metalearn.trainers.supervised.run_network import RunNetwork
from metalearn.types import Params

__all__ = ["HyperModule", "RunOptimizer", "RunSetup", "RunValues", "checked_terms"]

RunOptimizer = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class RunSetup:
    """The ordinary run that is to be shaped."""

    data: SupervisedData
    params: Params
    """Of the network, before the run."""
    rates: Tensor
    """``[K]``, the learning rate of each step."""
    optimizer: RunOptimizer
    momentum: float
    """Of ``sgd``."""
    loss: SupervisedLoss
    seed: int

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the network's parameters."""
        return self.rates


class RunValues(NamedTuple):
    """What a run gets of what shapes it, by name."""

    in_loss: dict[str, Tensor]
    """What the inner loss is computed with."""
    in_optimizer: dict[str, Tensor]
    """``lr``, a scalar or ``[K]``, and ``momentum``, in place of those of the ordinary run."""


class HyperModule(nn.Module, ABC):
    """What shapes training runs, as parameters that are learnt; each kind is a subclass.

    Args:
        setup: the ordinary run.
    """

    sees_examples: ClassVar[bool] = True
    """Whether steps of a run have batches of the training examples."""

    def __init__(self, setup: RunSetup) -> None:
        super().__init__()
        self.setup = setup

    @abstractmethod
    def values(self, raw: Mapping[str, Tensor]) -> RunValues:
        """What a run gets, as a differentiable function of the parameters by name alone."""

    def inner_loss(
        self, network: RunNetwork, params: Params, in_loss: Mapping[str, Tensor], batch: StepBatch
    ) -> Tensor:
        """The loss that a step of a run descends, a scalar: mean of `terms`, and `penalty`.

        One of a subclass's own is not divided among ranks, as these are.
        """
        batch = self.examples(in_loss, batch)
        mean = checked_terms(self.terms(network, params, in_loss, batch), len(batch[0])).mean()
        penalty = self.penalty(params, in_loss)
        return mean if penalty is None else mean + penalty

    def examples(self, in_loss: Mapping[str, Tensor], batch: StepBatch) -> StepBatch:
        """What a step is taken on, ``[B, ...]``; here the step's batch."""
        return batch

    def terms(
        self, network: RunNetwork, params: Params, in_loss: Mapping[str, Tensor], batch: StepBatch
    ) -> Tensor:
        """``[B]``, whose mean is in the loss: each of its example alone; here `sample_losses`."""
        return self.sample_losses(network, params, batch)

    def penalty(self, params: Params, in_loss: Mapping[str, Tensor]) -> Tensor | None:
        """A scalar beside the mean, in which no example has a part; None where there is none."""
        return None

    def sample_losses(self, network: RunNetwork, params: Params, batch: StepBatch) -> Tensor:
        """Losses ``[B]`` of a step's examples in training mode."""
        x, y, _, step = batch
        return self.setup.loss.each(network.trained(params, x, step), y)

    def plain(self) -> RunValues:
        """Those of an ordinary run, for comparison; here as they begin. Asked before training."""
        return self.current()

    def current(self) -> RunValues:
        """What a run gets as the parameters stand, without a graph, and not as they change."""
        raw = {name: value.detach().clone() for name, value in self.named_parameters()}
        return self.values(raw)

    def records(self, values: RunValues) -> dict[str, float]:
        """Numbers that tell what has been learnt, by name."""
        return {}

    def figure(self, values: RunValues, plain: RunValues, title: str) -> Figure | None:
        """What has been learnt beside what an ordinary run has; None where there is no picture."""
        return None


def checked_terms(terms: Tensor, count: int) -> Tensor:
    """Losses of so many examples, as they are.

    Raises:
        SettingError: another shape, whose mean would not be that over examples.
    """
    if terms.shape != (count,):
        accepted = f"one loss for each of {count} examples, of shape [{count}], is needed"
        raise SettingError("terms", list(terms.shape), accepted)
    return terms
