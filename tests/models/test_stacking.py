"""Which networks stand in one stack, and which in none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import Ensemble
from metalearn.errors import SettingError
from metalearn.models import MLP, Dropout, Stack, convert_dropout
from tests.support.member_networks import close, rows, same, tied


def test_architectures_that_differ_are_stacked_apart_in_the_order_of_members() -> None:
    sizes = [(5,), (6,), (5,), (5, 5), (6,)]
    networks = [MLP((4,), 3, hidden=hidden, seed=i).double() for i, hidden in enumerate(sizes)]
    ensemble = Ensemble.from_modules(networks)
    assert [stack.indices for stack in ensemble.stacks] == [(0, 2), (1, 4), (3,)]
    x = rows()
    close(ensemble(x), torch.stack([network(x) for network in networks]))
    for index, network in enumerate(networks):
        same(ensemble.member(index).state_dict(), network.state_dict())


class Scaled(nn.Module):
    """A linear layer times something that is no parameter."""

    def __init__(self, act: object, frozen: bool = False) -> None:
        super().__init__()
        self.act = act
        self.linear = nn.Linear(4, 2).requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if isinstance(self.act, Tensor | float | int):
            return self.act * y
        return self.act(y) if callable(self.act) else self.act.slope * y


class Config:
    def __init__(self, slope: float) -> None:
        self.slope, self.me = slope, self

    def apply(self, y: Tensor) -> Tensor:
        return self.slope * y


@pytest.mark.parametrize(
    "act",
    [
        float,
        torch.tensor,
        Config,
        lambda slope: Config(slope).apply,
        lambda slope: partial(F.leaky_relu, negative_slope=slope),
        lambda slope: lambda y: y * slope,
        lambda slope: lambda y, by=slope: y * by,
    ],
    ids=["number", "tensor", "object", "method", "partial", "closure", "default"],
)
def test_networks_that_compute_otherwise_are_not_stacked(act: Callable[[float], object]) -> None:
    networks = [Scaled(act(slope)).double() for slope in (0.5, 2.0, 0.5)]
    ensemble = Ensemble.from_modules(networks)
    assert [stack.indices for stack in ensemble.stacks] == [(0, 2), (1,)]
    close(ensemble(rows()), torch.stack([network(rows()) for network in networks]))


def test_parameters_that_are_not_trained_stay_so() -> None:
    networks = [Scaled(1.0, frozen).double() for frozen in (True, False, True)]
    ensemble = Ensemble.from_modules(networks)
    close(ensemble(rows()), torch.stack([network(rows()) for network in networks]))
    for index, network in enumerate(networks):
        for (name, value), (_, own) in zip(
            network.named_parameters(), ensemble.member(index).named_parameters()
        ):
            assert own.requires_grad == value.requires_grad, name
    assert sum(value.requires_grad for value in ensemble.parameters()) == 2


def test_tied_weights_stay_tied() -> None:
    ensemble = Ensemble.from_modules([tied(seed) for seed in range(3)])
    assert len(list(ensemble.parameters())) == 4  # one weight, two biases, the scale
    member = ensemble.member(1)
    assert member.first.weight is member.last.weight
    ensemble(rows()).square().sum().backward()
    for index in range(3):
        alone = tied(index)
        alone(rows()).square().sum().backward()
        stack = ensemble.stacks[0].network
        close(stack.first.weight.grad[index], alone.first.weight.grad)
        close(stack.scale.grad[index], alone.scale.grad)


# --- what is refused ------------------------------------------------------------------------------


def test_dropout_of_torch_is_refused_when_training_begins() -> None:
    network = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    message = r"module\[1\]='Dropout': dropout with p=0.5 draws from the global random state"
    with pytest.raises(SettingError, match=message):
        Ensemble.from_modules([network])
    ensemble = Ensemble.from_modules([network.eval()]).eval()
    with pytest.raises(SettingError, match=message):
        ensemble.train()
    assert isinstance(convert_dropout(network)[1], Dropout)
    Ensemble.from_modules([convert_dropout(network)]).train()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble.from_modules([]), "members=0: at least one network is needed"),
        (lambda: Ensemble([]), r"members=\[\]: each of 0..M-1 once"),
        (lambda: Stack([]), "members=0: at least one network is needed"),
        (lambda: Ensemble.from_factory(tied, []), r"seeds=\[\]: at least one is needed"),
        (lambda: Ensemble.from_factory(tied, [-1]), "seeds=-1: a whole number of at least 0"),
        (
            lambda: Ensemble.from_modules([tied(0)]).member(1),
            "member=1: a whole number from 0 to 0",
        ),
        (
            lambda: Ensemble.from_modules([tied(0)])(rows(), engine="fast"),
            "engine='fast': one of batched, vmap, loop is needed",
        ),
        (
            lambda: Stack([nn.Linear(4, 2), nn.Linear(4, 3)]),
            r"members\[1\].weight='torch.float32 \[3, 4\]': torch.float32 \[2, 4\] is needed",
        ),
        (
            lambda: Stack([Scaled(1.0), Scaled(2.0)]),
            r"members\[1\]='Scaled': the layers and settings of members\[0\] are needed",
        ),
        (
            lambda: Ensemble.from_modules([nn.BatchNorm1d(3, momentum=None)]),
            r"an average over all batches \(momentum=None\) cannot be kept",
        ),
        (lambda: Ensemble.from_modules([nn.GRU(3, 3)]), "vmap cannot take fused recurrent layers"),
        (lambda: Ensemble.from_modules([nn.LazyLinear(3)]), "a lazy layer has no parameters yet"),
    ],
)
def test_bad_members_get_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
