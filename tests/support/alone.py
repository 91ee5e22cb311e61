"""One network trained by a plain torch loop: what a member of an ensemble must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import Ensemble
from metalearn.data import Augmentation, MemberBatches, augment
from metalearn.data.regression import SupervisedData
from metalearn.models import Dropout
from metalearn.trainers import EnsembleTrainer
from tests.support.oracles import draw

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Precise(nn.Module):
    """A network in float64, for data that come in float32."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.network = draw(network, seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def conv_network(seed: int, *, dropout: float = 0.0) -> nn.Module:
    """Convolution, batch norm with running statistics, dropout."""
    layers = [nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()]
    drop = [Dropout(dropout)] if dropout else []
    return Precise(nn.Sequential(*layers, *drop, nn.Linear(48, 3)), seed)


def mlp_network(seed: int, *, hidden: int = 6, dropout: float = 0.0) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(16, hidden), nn.Tanh()]
    drop = [Dropout(dropout)] if dropout else []
    return Precise(nn.Sequential(*layers, *drop, nn.Linear(hidden, 3)), seed)


def networks(make: Callable[..., nn.Module], seeds: Iterable[int], **settings: Any) -> Ensemble:
    return Ensemble.from_modules([make(seed, **settings) for seed in seeds])


def train_alone(
    network: nn.Module, data: SupervisedData, seed: int, optimizer: Optimizer, *,
    steps: int, batch_size: int = 8, schedule: str = "constant", clip: float | None = None,
    label_smoothing: float = 0.0, bootstrap: bool = False, augmentation: Augmentation | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None, weights: Tensor | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """Train the network in place, as anyone would write it.

    Weights are of the training part, in its order; with them a criterion gives losses of samples.
    """
    order = MemberBatches(
        data.splits["train"], batch_size=batch_size, seeds=[seed], bootstrap=bootstrap
    )
    stepper = optimizer(network.parameters())
    rate = stepper.param_groups[0]["lr"]
    for step in range(steps):
        network.train()
        for layer in network.modules():
            if isinstance(layer, Dropout):
                layer.draw.fill_(step)
        indices = order.indices(step)
        x, y = data.take(indices)
        x = augment(x, augmentation or Augmentation(), seeds=[seed], step=step)
        if weights is not None:
            places = [data.splits["train"].tolist().index(int(i)) for i in indices]
            losses = (
                F.cross_entropy(network(x), y, label_smoothing=label_smoothing, reduction="none")
                if criterion is None
                else criterion(network(x), y)
            )
            loss = (weights[places] * losses).sum() / batch_size
        elif criterion is None:
            loss = F.cross_entropy(network(x), y, label_smoothing=label_smoothing)
        else:
            loss = criterion(network(x), y)
        stepper.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        if schedule == "cosine":
            stepper.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        stepper.step()
    return stepper


def assert_member(
    trainer: EnsembleTrainer, index: int, network: nn.Module, tolerance: float = 1e-10
) -> None:
    """All tensors of a member's state, running statistics too; draws of masks aside."""
    found = trainer.ensemble.member(index).state_dict()
    expected = network.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        if not name.endswith(".draw"):
            torch.testing.assert_close(
                found[name], value, rtol=tolerance, atol=tolerance,
                msg=lambda text, name=name: f"member {index}, {name}: {text}",
            )  # fmt: skip
