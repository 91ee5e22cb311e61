"""MC-dropout: draws against a loop over masks, what is shared, what stays in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metalearn.errors import SettingError
from metalearn.models import MLP, Dropout, MCDropout, set_draw


def _inputs(count: int = 6) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def _network(p: float = 0.5) -> nn.Module:
    return nn.Sequential(MLP((4,), 8, hidden=(8,)), nn.ReLU(), Dropout(p, key=3), nn.Linear(8, 3))


def test_draws_are_a_loop_over_masks() -> None:
    network, x = _network(), _inputs()
    model = MCDropout(network, 5)
    assert len(model) == 5
    rows = []
    network.train()
    for draw in range(5):
        set_draw(network, 2**31 + draw)
        rows.append(network(x))
    for engine in ("batched", "vmap", "loop"):
        torch.testing.assert_close(model(x, engine=engine), torch.stack(rows))


def test_draws_differ_and_come_again() -> None:
    network, x = _network(), _inputs()
    model = MCDropout(network, 4)
    found = model(x)
    assert torch.equal(found, model(x))
    for i in range(4):
        for j in range(i):
            assert not torch.equal(found[i], found[j])
    assert torch.equal(MCDropout(network, 2)(x), found[:2])


def test_without_rate_all_draws_are_the_network() -> None:
    network, x = _network(0.0), _inputs()
    torch.testing.assert_close(MCDropout(network, 3)(x), network.eval()(x).expand(3, -1, -1))


def test_only_dropout_is_in_training_mode() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
    before = {n: v.clone() for n, v in network.state_dict().items()}
    model = MCDropout(network, 3)
    for mode in (True, False):
        model.train(mode)
        first = model(_inputs())[:, :1]
        torch.testing.assert_close(model(_inputs()[:1]), first)  # no statistics of the batch
    assert model(_inputs()).std(0).min() > 0
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert isinstance(network[2], nn.Dropout)


def test_parameters_are_shared_by_all_draws() -> None:
    network, x = _network(), _inputs()
    model = MCDropout(network, 3)
    names = [n for n, _ in network.named_parameters()]
    assert [n for n, _ in model.named_parameters()] == [f"network.{n}" for n in names]
    model(x).sum().backward()
    network.train()
    for draw in range(3):
        set_draw(network, 2**31 + draw)
        network(x).sum().backward()
    for mine, plain in zip(model.parameters(), network.parameters()):
        torch.testing.assert_close(mine.grad, plain.grad)


def test_bad_settings() -> None:
    with pytest.raises(SettingError, match="network.*dropout layers"):
        MCDropout(nn.Linear(2, 2))
    with pytest.raises(SettingError, match="draws"):
        MCDropout(_network(), 0)
