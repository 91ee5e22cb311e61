"""Normalisation layers: what is put in their place, and running statistics that a call leaves."""

from __future__ import annotations

import copy
import inspect
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import convert_norm, functionalize
from metalearn.core.module.norms import Norm, RunningNorm, moved_statistics, normalization_of
from metalearn.errors import SettingError
from metalearn.models import Conv4
from tests.support import oracles

CONVERTED: list[tuple[Norm, type[nn.Module]]] = [
    ("batch_stats", nn.BatchNorm2d),
    ("running", RunningNorm),
    ("group", nn.GroupNorm),
    ("layer", nn.GroupNorm),
]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed))


def with_norm(norm: nn.Module) -> nn.Sequential:
    """A network whose norm has learnt something and has seen a batch."""
    inner = nn.Sequential(nn.Conv2d(1, 12, 3), norm)
    net = nn.Sequential(inner, nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    oracles.draw(net).float()
    net(drawn((5, 1, 4, 4)))
    return net


def test_batch_stats_keeps_weights_and_leaves_the_original() -> None:
    net = with_norm(nn.BatchNorm2d(12)).train()
    before = copy.deepcopy(net.state_dict())
    converted = convert_norm(net, "batch_stats")
    oracles.assert_trees(dict(converted.named_parameters()), dict(net.named_parameters()), 0.0)
    assert dict(converted.named_buffers()) == {}
    x = drawn((5, 1, 4, 4), 3)
    apply, params, buffers = functionalize(converted)
    out = apply(params, buffers, x)
    assert set(before) == set(net.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(out, net(x))  # train mode: the statistics of the batch
    torch.testing.assert_close(converted.eval()(x), out)


def test_group_keeps_scale_and_shift() -> None:
    net = with_norm(nn.BatchNorm2d(12, eps=0.1)).double()
    converted = convert_norm(net, "group")
    norm = converted[0][1]
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == 6 and norm.eps == 0.1
    assert norm.weight.dtype == torch.float64
    oracles.assert_trees(dict(converted.named_parameters()), dict(net.named_parameters()), 0.0)
    assert isinstance(net[0][1], nn.BatchNorm2d) and net[0][1].track_running_stats
    x = drawn((5, 1, 4, 4)).double()
    one = converted(x[:1])
    torch.testing.assert_close(converted(x)[:1], one)
    functionalize(converted)


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_as_many_groups_as_divide_the_channels(channels: int, groups: int) -> None:
    converted = convert_norm(nn.BatchNorm2d(channels, affine=False), "group")
    assert isinstance(converted, nn.GroupNorm) and converted.num_groups == groups
    assert list(converted.parameters()) == []


@pytest.mark.parametrize("norm", ["batch_stats", "group", "layer"])
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)]
)
def test_a_norm_at_the_root(norm: str, layer: nn.Module) -> None:
    converted = convert_norm(layer, norm)
    assert layer.track_running_stats and layer.running_mean is not None
    apply, params, buffers = functionalize(converted)
    assert set(params) == {"weight", "bias"} and buffers == {}
    assert apply(params, buffers, drawn((6, 4, 3))).shape == (6, 4, 3)


@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_norm_with_scale_but_without_shift(norm: str) -> None:
    """Newer torch has ``bias=False`` for the norms."""
    if "bias" not in inspect.signature(nn.BatchNorm1d.__init__).parameters:
        pytest.skip("this torch has no norm without a shift")
    layer = nn.BatchNorm1d(4, bias=False)
    nn.init.constant_(layer.weight, 3.0)
    _, params, _ = functionalize(convert_norm(nn.Sequential(layer), norm))
    assert params["0.weight"].tolist() == [3.0] * 4 and "0.bias" not in params


@pytest.mark.parametrize("norm", get_args(Norm))
def test_a_norm_used_in_two_places_is_converted_in_both(norm: str) -> None:
    shared = nn.BatchNorm1d(4)
    converted = convert_norm(nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared), norm)
    assert converted[1] is converted[3]
    _, params, _ = functionalize(converted)
    assert {name for name in params if name[0] in "13"} == {"1.weight", "1.bias"}


@pytest.mark.parametrize(("norm", "kind"), CONVERTED)
def test_a_module_without_running_statistics_is_converted_as_well(
    norm: Norm, kind: type[nn.Module]
) -> None:
    net = oracles.conv()
    converted = convert_norm(net, norm)
    assert converted is not net
    assert isinstance(converted[1], kind)
    oracles.assert_trees(dict(converted.named_parameters()), dict(net.named_parameters()), 0.0)


def test_an_unknown_norm_is_refused() -> None:
    known = "batch_stats, running, group, layer"
    with pytest.raises(SettingError, match=rf"^norm='spectral': one of {known} is needed"):
        convert_norm(oracles.conv(), "spectral")  # type: ignore[arg-type]


def test_a_layer_norm_is_over_channels_and_positions() -> None:
    net = convert_norm(with_norm(nn.BatchNorm2d(12)), "layer")
    x = net[0][0](drawn((5, 1, 4, 4), 2))
    y = (x - x.mean((1, 2, 3), keepdim=True)) / (x.var((1, 2, 3), False, True) + 1e-5).sqrt()
    norm = net[0][1]
    wanted = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), wanted)


# --- running statistics ----------------------------------------------------------------------


LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(4), (6, 4)),
    (lambda: nn.BatchNorm1d(4, affine=False, momentum=0.3), (6, 4, 3)),
    (lambda: nn.BatchNorm2d(4, eps=0.1), (5, 4, 2, 3)),
    (lambda: nn.BatchNorm3d(4), (3, 4, 2, 2, 2)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_running_norms_are_torchs_in_evaluation_and_move_as_torchs_do(
    make: Any, shape: tuple[int, ...]
) -> None:
    layer = oracles.draw(make()).double()
    layer(drawn(shape, 1).double())
    one, x = convert_norm(layer, "running"), drawn(shape, 2).double()
    assert {"running_mean", "running_var"} <= set(one.state_dict())
    torch.testing.assert_close(one(x), copy.deepcopy(layer).eval()(x))
    moved = moved_statistics(one, lambda: one(x))
    torch.testing.assert_close(one(x), copy.deepcopy(layer).eval()(x))  # nothing is written
    layer(x)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(moved[name], getattr(layer, name))


def test_a_layer_without_statistics_begins_with_those_of_nothing() -> None:
    net = convert_norm(Conv4((1, 16, 16), 3, filters=4), "running")
    norm = net.get_submodule("blocks.1.1")
    assert norm.running_mean.tolist() == [0.0] * 4 and norm.running_var.tolist() == [1.0] * 4


def test_statistics_of_a_shared_layer_move_twice_and_through_pure_copies() -> None:
    shared = nn.BatchNorm1d(4, momentum=0.5)
    net = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared).double()
    one, x = convert_norm(net, "running"), drawn((6, 4)).double()
    apply, params, buffers = functionalize(one)
    moved = moved_statistics(one, lambda: apply(params, buffers, x))
    first = net[0](x)
    second = net[2](copy.deepcopy(shared).eval()(first))
    mean = 0.5 * (0.5 * first.mean(0)) + 0.5 * second.mean(0)
    torch.testing.assert_close(moved["1.running_mean"], mean.detach())
    assert set(moved) == {"1.running_mean", "1.running_var"}
    assert moved_statistics(nn.Linear(2, 2), lambda: 1 / 0) == {}  # it is not called


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(2, 2), "^module='Linear': batch normalisation is needed for norm='running'"),
        (nn.InstanceNorm1d(2), "^module='InstanceNorm1d': batch normalisation is needed for"),
        (nn.BatchNorm1d(2, momentum=None), "^module='BatchNorm1d': a momentum is needed for"),
    ],
)
def test_what_has_no_running_statistics_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        convert_norm(module, "running")


# --- what a module has -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([nn.Linear(4, 4)], "none"),
        ([nn.BatchNorm1d(4)], "batch_stats"),
        ([nn.BatchNorm1d(4, track_running_stats=False).eval()], "batch_stats"),
        ([nn.BatchNorm1d(4).eval()], "running"),
        ([RunningNorm(nn.BatchNorm1d(4))], "running"),
        ([nn.GroupNorm(2, 4)], "group"),
        ([nn.GroupNorm(1, 4)], "layer"),
        ([nn.LayerNorm(4)], "layer"),
        ([nn.RMSNorm(4)], "rms"),
        ([nn.InstanceNorm1d(4)], "instance"),
        ([nn.LayerNorm(4), nn.BatchNorm1d(4), nn.LayerNorm(4)], "layer, batch_stats"),
    ],
)
def test_the_name_of_what_a_module_normalises_with(layers: list[nn.Module], name: str) -> None:
    net = nn.Sequential()
    net.extend(layers)
    assert normalization_of(net) == name
