"""Last layers: found, replaced by others, left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4, ResNet12, ViT, with_head, without_head


class Own(nn.Module):
    """A network whose last linear layer is not the last that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.out = nn.Linear(6, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale * self.out(self.body(x))
        return y


def _squeezed() -> nn.Module:
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), *pool)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "own": (Own(), (4,), "out"),
    "conv4": (Conv4((1, 16, 16), 3, filters=6), (1, 16, 16), "head"),
    "resnet12": (ResNet12((1, 16, 16), 3, filters=6), (1, 16, 16), "head"),
    "vit": (ViT((1, 8, 8), 3, patch=4, width=6, depth=1, heads=2), (1, 8, 8), "head"),
    "mlp": (MLP((4,), 3, hidden=(6,)), (4,), "3"),
    "pointwise": (_squeezed(), (1, 8, 8), "2"),
}
networks = pytest.mark.parametrize(("network", "shape", "head"), NETWORKS.values(), ids=NETWORKS)


@networks
def test_a_new_head_is_all_that_is_new(
    network: nn.Module, shape: tuple[int, ...], head: str
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = with_head(network, 7, seed=1)
    assert made(torch.ones(2, *shape)).shape == (2, 7)
    after = made.state_dict()
    assert after.keys() == before.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert (after[name].shape == value.shape) != name.startswith(f"{head}.")
        assert name.startswith(f"{head}.") or torch.equal(after[name], value)


@networks
def test_features_are_what_the_head_reads(
    network: nn.Module, shape: tuple[int, ...], head: str
) -> None:
    read: list[Tensor] = []
    hook = network.get_submodule(head).register_forward_hook(
        lambda layer, given, found: read.append(given[0])
    )
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    network(x)
    hook.remove()
    body = without_head(network)
    found = body(x)
    assert not [name for name in body.state_dict() if name.startswith(f"{head}.")]
    expected = read[0].mean((-1, -2)) if head == "2" else read[0]
    torch.testing.assert_close(found, expected)


def test_heads_follow_the_seed_the_type_and_the_mode_alone() -> None:
    network = Own().double().eval()
    state = torch.get_rng_state()
    one, same, other = (with_head(network, 5, seed=s).get_submodule("out") for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(one, nn.Linear) and one.bias is None and not one.training
    assert one.weight.dtype == torch.float64
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)


def test_a_layer_that_is_named() -> None:
    made = with_head(Own(), 6, layer="body.0")
    assert made.get_submodule("body.0").weight.shape == (6, 4)
    with pytest.raises(SettingError, match=r"layer='body.1': one of body.0, out is needed"):
        with_head(Own(), 6, layer="body.1")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: with_head(nn.Conv2d(1, 2, 3), 3), "module='Conv2d': a network with a last lin"),
        (lambda: with_head(nn.Linear(2, 2), 3), "module='Linear': a network with a last linear"),
        (lambda: without_head(nn.Sequential(nn.ReLU())), "module='Sequential': a network with a"),
        (lambda: with_head(Own(), 0), "outputs=0: a whole number of at least 1"),
        (lambda: with_head(Own(), 3, seed=-1), "seed=-1"),
    ],
)
def test_networks_without_a_head_and_bad_values(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
