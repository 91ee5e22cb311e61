"""An engine is held to a plain loop in every parameter, in float64 where the loss takes it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import Plan, adamw, functionalize, sgd
from metalearn.core import plan_meta_gradient as plan
from metalearn.core.ops import layers
from metalearn.core.tree import distances
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.oracles import Problem


def single(case: Problem) -> Problem:
    """The same in float32."""

    def down(tree: Any) -> Any:
        return torch.utils._pytree.tree_map(
            lambda x: x.float() if x.is_floating_point() else x, tree
        )

    return case._replace(params=down(case.params), tasks=down(case.tasks))


def planned(case: Problem, **changes: Any) -> Plan:
    return plan(*case, **{"optimizer": sgd(0.3), "steps": 2, **changes})


def wrong_by(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of the batched engine are wrong."""
    right = layers.conv2d
    monkeypatch.setattr(layers, "conv2d", lambda *given, **more: factor * right(*given, **more))


def conv() -> Problem:
    return single(oracles.classification(oracles.conv(nn.Identity), (1, 4, 4)))


def test_a_thousandth_is_found_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(conv()).engine == "batched"
    wrong_by(1.001, monkeypatch)
    found = planned(conv())
    assert found.engine == "vmap"
    assert found.notes[0].startswith("batched differs from a plain loop by 0.0")


CASTS: dict[str, Callable[[Problem], Callable[..., Tensor]]] = {
    "inputs": lambda case: lambda p, b: case.loss_fn(p, (b[0].float(), b[1])),
    "everything": lambda case: (
        lambda p, b: case.loss_fn({k: v.float() for k, v in p.items()}, (b[0].float(), b[1]))
    ),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_loss_in_float32_is_held_to_per_cents(
    cast: Callable[[Problem], Callable[..., Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = conv()
    case = case._replace(loss_fn=cast(case))
    found = planned(case)
    assert found.engine == "batched"
    assert found.notes == ("held to a plain loop to 5% alone: this loss does not run in float64",)
    assert not planned(conv()).notes and not planned(case, engine="batched").notes
    with monkeypatch.context() as patch:
        wrong_by(1.001, patch)
        assert planned(case).engine == "batched"
    wrong_by(1.5, monkeypatch)
    assert planned(case).engine == "vmap"


def test_buffers_in_float32_are_no_hindrance() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 5), nn.Linear(5, 2)
            self.register_buffer("mask", torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last((self.first(x) * (2 * self.mask)).tanh())
            return y

    case = single(oracles.classification(oracles.draw(Masked()), (2,)))
    assert planned(case).engine == "batched"


LEARNT: dict[str, Callable[[], Any]] = {
    "rate": lambda: sgd(torch.tensor(0.3)),
    "schedule": lambda: sgd(torch.tensor([0.3, 0.1]), momentum=torch.tensor(0.5)),
    "adamw": lambda: adamw(
        torch.tensor(0.1), betas=(torch.tensor(0.8), 0.9), weight_decay=torch.tensor(0.1)
    ),
}


@pytest.mark.parametrize("make", LEARNT.values(), ids=LEARNT)
def test_what_is_learnt_in_float32_is_no_hindrance(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(conv(), optimizer=make())
    assert found.engine == "batched" and not found.notes
    wrong_by(1.001, monkeypatch)
    found = planned(conv(), optimizer=make())
    assert found.engine == "vmap"
    assert found.notes[0].startswith("batched differs from a plain loop by 0.0")


def test_a_small_parameter_counts_as_much_as_a_large_one() -> None:
    """A padding row that moves is a small part of a model's gradient, but all of its own."""
    x = torch.randn(3, 4, 2, generator=oracles.generator(0))
    params = {"large": torch.tensor([300.0, -200.0]), "small": torch.tensor([0.1, 0.2])}

    def loss(p: Any, batch: Tensor) -> Tensor:
        small = batch @ p["small"]
        if torch._C._functorch.is_batchedtensor(batch):
            small = small * 1.1
        return ((batch @ p["large"]).square() * 50 + small).mean()

    found = planned(Problem(loss, params, TaskBatch(x, x + 1)), optimizer=sgd(1e-3))
    assert found.engine == "loop"
    assert len(found.notes) == 2
    for note, engine in zip(found.notes, ("batched", "vmap")):
        assert note.startswith(f"{engine} differs from a plain loop by 0.1 in small")


def test_the_module_of_the_loss_is_left_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    before = copy.deepcopy(module.state_dict())
    apply, params, buffers = functionalize(module)

    def loss(p: Any, b: Any) -> Tensor:
        return nn.functional.cross_entropy(apply(p, buffers, b[0]), b[1])

    tasks = single(oracles.classification(oracles.mlp(), (2,))).tasks
    assert planned(Problem(loss, params, tasks)).engine == "batched"
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
        assert params[name].data_ptr() == value.data_ptr()


def test_distances_are_relative_to_each_leaf() -> None:
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-9]), "c": torch.tensor([0.1])}
    found = {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([2e-9]), "c": torch.tensor([0.2])}
    gaps = distances(found, wanted, floor=1e-3)
    size = math.hypot(5, 0.1)
    assert gaps == pytest.approx({"a": 0.1, "b": 1e-9 / (1e-3 * size), "c": 1.0})


def test_distances_of_what_is_not_finite() -> None:
    inf, nan = math.inf, math.nan
    wanted = {"a": torch.tensor([nan]), "b": torch.tensor([1.0]), "c": torch.tensor([0.0])}
    found = {"a": torch.tensor([1.0]), "b": torch.tensor([nan]), "c": torch.tensor([inf])}
    gaps = distances(found, wanted, floor=1e-3)
    assert gaps["a"] == 0 and math.isnan(gaps["b"]) and gaps["c"] == inf
    assert distances({"a": torch.zeros(2)}, {"a": torch.zeros(2)}, floor=1.0) == {"a": 0.0}
