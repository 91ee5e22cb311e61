"""From module to pure function: equal outputs, shared storage, and refusals by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import convert_norm, functionalize, meta_gradient, sgd
from metalearn.core.module.functionalize import Norm
from metalearn.errors import SettingError
from tests.support import oracles


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed))


def with_norm(norm: nn.Module) -> nn.Sequential:
    """A network whose norm has learnt something and has seen a batch."""
    inner = nn.Sequential(nn.Conv2d(1, 12, 3), norm)
    net = nn.Sequential(inner, nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    oracles.draw(net).float()
    net(drawn((5, 1, 4, 4)))
    return net


class Embedding(nn.Module):
    """A buffer, an integer input, keyword inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.register_buffer("offset", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, index: Tensor, *, factor: float = 1.0) -> dict[str, Tensor]:
        code = self.table(index) * factor + self.offset
        return {"code": code, "sum": code.sum(-1)}


# --- functionalize ---------------------------------------------------------------------------


def test_apply_equals_the_module() -> None:
    net = Embedding()
    apply, params, buffers = functionalize(net)
    index = torch.tensor([[0, 4], [2, 2]])
    out, expected = apply(params, buffers, index, factor=3.0), net(index, factor=3.0)
    assert torch.equal(out["code"], expected["code"]) and torch.equal(out["sum"], expected["sum"])
    assert list(params) == ["table.weight"] and list(buffers) == ["offset"]
    moved = apply(params, {"offset": torch.zeros(3)}, index)["code"]
    assert torch.equal(moved, net.table(index))
    assert torch.equal(net.offset, torch.tensor([1.0, 2.0, 3.0]))


def test_trees_are_detached_and_share_storage() -> None:
    net = oracles.mlp()
    apply, params, buffers = functionalize(net)
    assert not any(value.requires_grad for value in params.values()) and buffers == {}
    x = drawn((3, 2)).double()
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(2.0)
    for name, value in net.named_parameters():
        assert params[name].data_ptr() == value.data_ptr()
    assert torch.equal(apply(params, buffers, x), net(x))


def test_apply_leaves_the_module_alone() -> None:
    net = oracles.mlp()
    before = copy.deepcopy(net.state_dict())
    apply, params, buffers = functionalize(net)
    apply({name: value + 1 for name, value in params.items()}, buffers, drawn((3, 2)).double())
    oracles.assert_trees(net.state_dict(), before, 0.0)
    assert all(isinstance(value, nn.Parameter) for value in net.parameters())


def test_parameters_without_gradients_stand_among_the_buffers() -> None:
    net = oracles.mlp()
    net[0].weight.requires_grad_(False)
    apply, params, buffers = functionalize(net)
    assert list(params) == [name for name, _ in net.named_parameters()][1:]
    assert list(buffers) == ["0.weight"]
    x = torch.ones(2, net[0].in_features, dtype=net[0].weight.dtype)
    torch.testing.assert_close(apply(params, buffers, x), net(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch_norm": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.BatchNorm1d(2)),
        r"^module\[1\]='BatchNorm1d': running statistics.*track_running_stats=False.*convert_norm",
    ),
    "nested_batch_norm": (
        lambda: nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))}),
        r"^module\[body\.1\]='BatchNorm2d': running statistics",
    ),
    "instance_norm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)),
        r"^module\[0\]='InstanceNorm2d': running statistics",
    ),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)),
        r"^module\[1\]='Dropout': dropout with p=0\.5 draws from the global random state",
    ),
    "dropout2d": (lambda: nn.Sequential(nn.Dropout2d(0.1)), r"^module\[0\]='Dropout2d': dropout"),
    "alpha_dropout": (
        lambda: nn.Sequential(nn.AlphaDropout(0.1)),
        r"^module\[0\]='AlphaDropout': dropout",
    ),
    "feature_alpha_dropout": (
        lambda: nn.Sequential(nn.FeatureAlphaDropout(0.1)),
        r"^module\[0\]='FeatureAlphaDropout': dropout",
    ),
    "rrelu": (lambda: nn.Sequential(nn.RReLU()), r"^module\[0\]='RReLU': .*random"),
    "attention_dropout": (
        lambda: nn.ModuleDict({"att": nn.MultiheadAttention(2, 1, dropout=0.1)}),
        r"^module\[att\]='MultiheadAttention': .*dropout",
    ),
    "lstm": (
        lambda: nn.ModuleDict({"memory": nn.LSTM(2, 3)}),
        r"^module\[memory\]='LSTM': vmap cannot.*nn\.LSTMCell.*vectorize=False",
    ),
    "gru": (lambda: nn.ModuleDict({"m": nn.GRU(2, 3)}), r"^module\[m\]='GRU': .*nn\.GRUCell"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(2)),
        r"^module\[0\]='LazyLinear': a lazy layer has no parameters yet",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_by_name(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(SettingError, match=message):
        functionalize(make())


def test_recurrent_dropout_is_refused_in_the_plain_loop_too() -> None:
    net = nn.ModuleDict({"memory": nn.LSTM(2, 3, num_layers=2, dropout=0.5)})
    with pytest.raises(SettingError, match=r"^module\[memory\]='LSTM': .*dropout"):
        functionalize(net, vectorize=False)
    functionalize(net.eval(), vectorize=False)


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (nn.Sequential(nn.BatchNorm1d(2)).eval(), {}),
        (nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), {}),
        (nn.Sequential(nn.Unflatten(1, (1, 2)), nn.InstanceNorm1d(1)), {}),
        (nn.Sequential(nn.Dropout(0.5)).eval(), {}),
        (nn.Sequential(nn.Dropout(0.0)), {}),
        (nn.LSTM(2, 3), {"vectorize": False}),
        (nn.LSTMCell(2, 3), {}),
    ],
)
def test_what_can_work_is_let_through(module: nn.Module, settings: dict[str, Any]) -> None:
    apply, params, buffers = functionalize(module, **settings)
    x = drawn((4, 2))
    torch.testing.assert_close(apply(params, buffers, x), module(x))


def test_batch_norm_in_eval_mode_uses_its_statistics_in_second_order() -> None:
    net = oracles.conv(nn.BatchNorm2d).train()
    net(drawn((5, 1, 4, 4)).double())
    case = oracles.classification(net.eval(), (1, 4, 4))
    before = copy.deepcopy(dict(net.named_buffers()))
    for engine in ("batched", "vmap", "loop"):
        grads = meta_gradient(*case, optimizer=sgd(0.3), steps=2, engine=engine).grads
        expected = oracles.finite_difference_maml(case, oracles.sgd_rule(0.3), 2)
        oracles.assert_trees(grads, expected, 1e-7)
    for name, value in net.named_buffers():
        assert torch.equal(value, before[name])


def test_functionalize_and_convert_norm_touch_no_random_state() -> None:
    net = with_norm(nn.BatchNorm2d(12))
    state = torch.get_rng_state()
    apply, params, buffers = functionalize(convert_norm(net, "group"))
    apply(params, buffers, drawn((2, 1, 4, 4)))
    assert torch.equal(torch.get_rng_state(), state)


# --- convert_norm ----------------------------------------------------------------------------


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


@pytest.mark.parametrize("norm", ["batch_stats", "group"])
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True)]
)
def test_a_norm_at_the_root(norm: str, layer: nn.Module) -> None:
    converted = convert_norm(layer, norm)
    assert layer.track_running_stats and layer.running_mean is not None
    apply, params, buffers = functionalize(converted)
    assert set(params) == {"weight", "bias"} and buffers == {}
    assert apply(params, buffers, drawn((6, 4, 3))).shape == (6, 4, 3)


@pytest.mark.parametrize("norm", ["batch_stats", "group"])
def test_a_norm_with_scale_but_without_shift(norm: str) -> None:
    """Newer torch has ``bias=False`` for the norms."""
    if "bias" not in inspect.signature(nn.BatchNorm1d.__init__).parameters:
        pytest.skip("this torch has no norm without a shift")
    layer = nn.BatchNorm1d(4, bias=False)
    nn.init.constant_(layer.weight, 3.0)
    _, params, _ = functionalize(convert_norm(nn.Sequential(layer), norm))
    assert params["0.weight"].tolist() == [3.0] * 4 and "0.bias" not in params


@pytest.mark.parametrize("norm", ["batch_stats", "group"])
def test_a_norm_used_in_two_places_is_converted_in_both(norm: str) -> None:
    shared = nn.BatchNorm1d(4)
    converted = convert_norm(nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared), norm)
    assert converted[1] is converted[3]
    _, params, _ = functionalize(converted)
    assert {name for name in params if name[0] in "13"} == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch_stats", nn.BatchNorm2d), ("group", nn.GroupNorm)]
)
def test_a_module_without_running_statistics_is_converted_as_well(
    norm: Norm, kind: type[nn.Module]
) -> None:
    net = oracles.conv()
    converted = convert_norm(net, norm)
    assert converted is not net
    assert isinstance(converted[1], kind)
    oracles.assert_trees(dict(converted.named_parameters()), dict(net.named_parameters()), 0.0)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^norm='layer': one of batch_stats, group is needed"):
        convert_norm(oracles.conv(), "layer")  # type: ignore[arg-type]


def test_missing_parameters_are_refused_not_taken_from_the_module() -> None:
    apply, params, buffers = functionalize(nn.Linear(2, 1))
    with pytest.raises(SettingError, match=r"^params=\['weight'\]: \['bias', 'weight'\] are all"):
        apply({"weight": params["weight"]}, buffers, torch.ones(1, 2))
