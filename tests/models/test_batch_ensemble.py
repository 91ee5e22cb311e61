"""BatchEnsemble against explicit weights of each member, values and gradients, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from metalearn.errors import SettingError
from metalearn.models import MLP, BatchEnsemble, Ensemble


def _dense() -> nn.Module:
    net = nn.Sequential(MLP((4,), 8, hidden=(6,)), nn.LayerNorm(8), nn.Linear(8, 3, bias=False))
    return _drawn(net)


def _pictures() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    return _drawn(net)


def _drawn(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = net.double()
    for value in net.parameters():
        value.data = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return net


def _inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CASES: Any = pytest.mark.parametrize(
    ("make", "shape"), [(_dense, (5, 4)), (_pictures, (5, 2, 6, 6))], ids=["dense", "pictures"]
)
ENGINES: Any = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])


def _explicit(net: nn.Module, model: BatchEnsemble, member: int) -> nn.Module:
    """The plain network with weight W ∘ (s rᵀ) and everything else the member's own."""
    plain = copy.deepcopy(net)
    held = {n.removeprefix("network."): v for n, v in model.state_dict().items()}
    state = {}
    for name in plain.state_dict():
        layer, _, leaf = name.rpartition(".")
        if f"{layer}.r" not in held:
            state[name] = held[name][member]
        elif leaf == "bias":
            state[name] = held[f"{layer}.bias"][member]
        else:
            r, s = held[f"{layer}.r"][member], held[f"{layer}.s"][member]
            weight = held[f"{layer}.layer.weight"].clone()
            outputs, inputs = weight.shape[:2]
            groups = len(r) // inputs
            for o in range(outputs):
                for i in range(inputs):
                    at = (o // (outputs // groups)) * inputs + i
                    weight[o, i] *= s[o] * r[at]
            state[name] = weight
    plain.load_state_dict(state)
    return plain


def _other_values(model: BatchEnsemble) -> BatchEnsemble:
    """Every tensor of every member different."""
    generator = torch.Generator().manual_seed(2)
    for value in model.parameters():
        value.data += 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return model


@CASES
@ENGINES
@pytest.mark.parametrize("factors", ["signs", "normal"])
def test_members_have_the_weight_of_rank_one_factors(
    make: Any, shape: tuple[int, ...], engine: Any, factors: Any
) -> None:
    net, x = make(), _inputs(*shape)
    model = _other_values(BatchEnsemble(net, 3, factors=factors))
    rows = torch.stack([_explicit(net, model, m)(x) for m in range(3)])
    torch.testing.assert_close(model(x, engine=engine), rows)


@CASES
@ENGINES
def test_factors_of_one_are_the_plain_network(
    make: Any, shape: tuple[int, ...], engine: Any
) -> None:
    net, x = make(), _inputs(*shape)
    model = BatchEnsemble(net, 2, factors="ones")
    torch.testing.assert_close(model(x, engine=engine), net(x).expand(2, -1, -1))


@CASES
@ENGINES
def test_gradients_against_a_loop(make: Any, shape: tuple[int, ...], engine: Any) -> None:
    """Of the mean loss: a shared weight has the mean over members, a member 1/M of its own."""
    net, x, y = make(), _inputs(*shape), torch.tensor([0, 1, 2, 1, 0])
    model = _other_values(BatchEnsemble(net, 3, factors="normal"))
    logits = model(x, engine=engine)
    F.cross_entropy(logits.flatten(0, 1), y.repeat(3)).backward()
    named = dict(model.named_parameters())
    shared = {n: torch.zeros_like(v) for n, v in named.items() if n.endswith("layer.weight")}
    for m in range(3):
        plain = _explicit(net, model, m)
        F.cross_entropy(plain(x), y).backward()
        for name, value in plain.named_parameters():
            layer, _, leaf = name.rpartition(".")
            own = f"network.{layer}"
            grad = value.grad
            assert grad is not None
            if f"{own}.r" not in named or leaf == "bias":
                mine = named[f"{own}.{leaf}"].grad
                assert mine is not None
                torch.testing.assert_close(mine[m], grad / 3)
                continue
            s = named[f"{own}.s"][m].detach()
            factor = s.view(-1, *(1,) * (grad.dim() - 1))
            if grad.shape[1] != named[f"{own}.r"].shape[1]:  # groups: values are held above
                shared.pop(f"{own}.layer.weight", None)
                continue
            r = named[f"{own}.r"][m].detach().view(1, -1, *(1,) * (grad.dim() - 2))
            shared[f"{own}.layer.weight"] += grad * factor * r / 3
            base = named[f"{own}.layer.weight"].detach()
            found = named[f"{own}.s"].grad
            assert found is not None
            torch.testing.assert_close(found[m], (grad * base * r).flatten(1).sum(1) / 3)
    for name, grad in shared.items():
        torch.testing.assert_close(named[name].grad, grad)


def test_weights_are_shared_and_the_rest_is_not() -> None:
    model = BatchEnsemble(_pictures(), 4)
    shapes = {n.removeprefix("network."): tuple(v.shape) for n, v in model.state_dict().items()}
    assert shapes["0.layer.weight"] == (4, 2, 3, 3)
    assert shapes["0.r"] == (4, 2) and shapes["0.s"] == (4, 4) and shapes["0.bias"] == (4, 4)
    assert shapes["1.weight"] == shapes["1.running_mean"] == (4, 4)
    assert set(model.state_dict()["network.0.r"].flatten().tolist()) == {-1.0, 1.0}


def test_running_statistics_are_each_members_own() -> None:
    net, x = _pictures(), _inputs(5, 2, 6, 6)
    model = BatchEnsemble(net, 2)
    plain = [_explicit(net, model, m) for m in range(2)]
    model(x)
    for m in range(2):
        plain[m](x)
        torch.testing.assert_close(model.network[1].running_mean[m], plain[m][1].running_mean)  # type: ignore[index]


@CASES
def test_a_stack_of_them_and_an_outer_vmap(make: Any, shape: tuple[int, ...]) -> None:
    one, other = (BatchEnsemble(make().eval(), 2, seed=s) for s in range(2))
    x = _inputs(*shape)
    rows = torch.stack([one(x), other(x)])
    torch.testing.assert_close(Ensemble.from_modules([one, other])(x), rows)
    torch.testing.assert_close(vmap(one)(torch.stack([x, 2 * x]))[1], one(2 * x))


def test_the_same_seed_gives_the_same_members() -> None:
    one, same, other = (BatchEnsemble(_dense(), 3, seed=s) for s in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one(_inputs(2, 4)), other(_inputs(2, 4)))


def test_layers_used_twice_and_tied_weights_stay_so() -> None:
    layer = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = layer.weight
    model = BatchEnsemble(nn.Sequential(layer, nn.ReLU(), layer, tied), 2)
    assert model.network[0] is model.network[2]  # type: ignore[index]
    assert model.network[3].layer.weight is model.network[0].layer.weight  # type: ignore[index]
    assert model(torch.ones(1, 4)).shape == (2, 1, 4)


def test_bad_settings() -> None:
    with pytest.raises(SettingError, match="members"):
        BatchEnsemble(_dense(), 0)
    with pytest.raises(SettingError, match="factors.*signs, normal, ones"):
        BatchEnsemble(_dense(), 2, factors="zeros")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="network.*a layer of Linear"):
        BatchEnsemble(nn.LayerNorm(3), 2)
    with pytest.raises(SettingError, match="dropout"):
        BatchEnsemble(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), 2)
