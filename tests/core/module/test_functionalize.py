"""From module to pure function: equal outputs, shared storage, and refusals by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import convert_norm, functionalize, meta_gradient, sgd
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


def test_missing_parameters_are_refused_not_taken_from_the_module() -> None:
    apply, params, buffers = functionalize(nn.Linear(2, 1))
    with pytest.raises(SettingError, match=r"^params=\['weight'\]: \['bias', 'weight'\] are all"):
        apply({"weight": params["weight"]}, buffers, torch.ones(1, 2))
