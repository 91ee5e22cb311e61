"""`Adaptation`: one value that says how a task is adapted to, and the trajectory it gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from metalearn.core import Adaptation, Eager, adam, adapt, inner_trajectory, sgd
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from tests.support import oracles
from tests.support.oracles import assert_trees

OPTIMIZERS = {
    "sgd": (sgd(0.3), oracles.sgd_rule(0.3)),
    "adam": (adam(0.05), oracles.adam_rule(0.05)),
}


@pytest.mark.parametrize("backend", [None, Eager()], ids=["functional", "eager"])
@pytest.mark.parametrize("frozen", [None, "0.*"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_trajectory_is_that_of_a_plain_loop(
    steps: int, optimizer: str, frozen: str | None, backend: Any
) -> None:
    case, (pair, rule) = oracles.classification(oracles.mlp(), (2,)), OPTIMIZERS[optimizer]
    support, _ = oracles.task_list(case.tasks)[0]
    adaptation = Adaptation(case.loss_fn, pair, steps, frozen)
    points = list(adaptation.trajectory(case.params, support, backend=backend))
    fixed = [name for name in case.params if frozen and name.startswith("0.")]
    assert len(points) == steps + 1 and points[0].loss is None
    for k, point in enumerate(points):
        start = {n: v.detach().requires_grad_() for n, v in case.params.items()}
        end, losses = oracles.inner_loop(case.loss_fn, start, support, rule, k, frozen=fixed)
        assert_trees(point.params, {n: v.detach() for n, v in end.items()})
        if k:
            torch.testing.assert_close(point.loss, losses[-1].detach())


def test_public_functions_build_it() -> None:
    case = oracles.classification(oracles.mlp(), (2,))
    support, _ = oracles.task_list(case.tasks)[0]
    settings: dict[str, Any] = {"optimizer": sgd(0.3), "steps": 2, "frozen": "0.*"}
    points = list(Adaptation(case.loss_fn, **settings).trajectory(case.params, support))
    others = list(inner_trajectory(case.loss_fn, case.params, support, **settings))
    for point, other in zip(points, others, strict=True):
        assert_trees(point.params, other.params, 0.0)
    end = adapt(case.loss_fn, case.params, support, **settings)
    assert_trees(points[-1].params, end.params, 0.0)


def test_it_is_a_frozen_value() -> None:
    def loss(params: Any, batch: Any) -> Any:
        return params.sum()

    optimizer = sgd(0.1)
    one = Adaptation(loss, optimizer, 2, "0.*")
    assert one == Adaptation(loss=loss, optimizer=optimizer, steps=2, frozen="0.*")
    assert one != dataclasses.replace(one, steps=3) and one.frozen == "0.*"
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.steps = 3  # type: ignore[misc]
    with pytest.raises(SettingError, match=r"^steps=-1: a whole number of at least 0"):
        dataclasses.replace(one, steps=-1)


@pytest.mark.parametrize(
    ("changes", "params", "message"),
    [
        ({"frozen": "head.*"}, None, r"^frozen='head\.\*': a pattern that matches a parameter"),
        ({"loss": lambda p, b: p["0.bias"]}, None, r"^loss_fn=.*: a scalar is needed"),
        ({"loss": lambda p, b: b[0].sum()}, None, r"^loss_fn='no parameter reached': a loss"),
        ({}, {"w": torch.ones(2).long()}, r"^params\[w\]=torch\.int64: a floating-point tensor"),
        ({"optimizer": sgd({"w": torch.tensor(0.1)})}, None, r"^lr=\['w'\]: one for each of"),
    ],
)
def test_what_the_trajectory_refuses(changes: dict[str, Any], params: Any, message: str) -> None:
    case = oracles.classification(oracles.mlp(), (2,))
    support, _ = oracles.task_list(case.tasks)[0]
    given = {"loss": case.loss_fn, "optimizer": sgd(0.1), "steps": 1, **changes}
    with pytest.raises(SettingError, match=message):
        leaves(list(Adaptation(**given).trajectory(params or case.params, support)))
