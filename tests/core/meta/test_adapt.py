"""The inner loop: where it ends, what it leaves alone, and its derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metalearn.core import (
    InnerOptimizer,
    adam,
    adapt,
    inner_trajectory,
    sgd,
)
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from tests.support import oracles
from tests.support.oracles import assert_trees

RULES: dict[str, tuple[Callable[[Any], InnerOptimizer], Callable[[Any], oracles.Rule]]] = {
    "sgd": (sgd, oracles.sgd_rule),
    "momentum": (
        lambda lr: sgd(lr, momentum=0.8, weight_decay=0.1),
        lambda lr: oracles.sgd_rule(lr, momentum=0.8, weight_decay=0.1),
    ),
    "adam": (adam, oracles.adam_rule),
}
rules = pytest.mark.parametrize("rule", RULES)


def problem() -> tuple[oracles.Loss, oracles.Tree, Any, Any]:
    case = oracles.classification(oracles.mlp(), (2,))
    support, query = oracles.task_list(case.tasks)[0]
    return case.loss_fn, case.params, support, query


def fresh(params: oracles.Tree) -> oracles.Tree:
    return {name: value.clone().requires_grad_() for name, value in params.items()}


@rules
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_equals_the_plain_loop(rule: str, steps: int) -> None:
    loss_fn, params, support, _ = problem()
    pure, plain = RULES[rule]
    adapted = adapt(loss_fn, params, support, optimizer=pure(0.1), steps=steps)
    end, losses = oracles.inner_loop(loss_fn, fresh(params), support, plain(0.1), steps)
    assert_trees(adapted.params, {name: value.detach() for name, value in end.items()}, 1e-12)
    assert adapted.losses.shape == (steps,) and adapted.losses.dtype == torch.float64
    assert adapted.losses.tolist() == pytest.approx([float(loss.detach()) for loss in losses])


def test_trajectory_has_one_point_more_than_steps() -> None:
    loss_fn, params, support, _ = problem()
    points = list(inner_trajectory(loss_fn, params, support, optimizer=sgd(0.2), steps=3))
    assert len(points) == 4 and points[0][1] is None
    assert_trees(points[0][0], params, 0.0)
    for before, (after, loss) in itertools.pairwise(points):
        assert float(loss) == pytest.approx(float(loss_fn(before[0], support)))
        step = torch.func.grad(loss_fn)(before[0], support)
        assert_trees(after, {k: v - 0.2 * step[k] for k, v in before[0].items()}, 1e-14)
    adapted = adapt(loss_fn, params, support, optimizer=sgd(0.2), steps=3)
    assert_trees(adapted.params, points[-1][0], 0.0)
    assert adapted.losses.tolist() == [float(point[1]) for point in points[1:]]


@rules
def test_ordinary_autograd_and_torch_func_agree_with_the_plain_loop(rule: str) -> None:
    loss_fn, params, support, query = problem()
    pure, plain = RULES[rule]

    def outer(start: oracles.Tree) -> Tensor:
        adapted = adapt(loss_fn, start, support, optimizer=pure(0.1), steps=2)
        return loss_fn(adapted.params, query)

    start, reference = fresh(params), fresh(params)
    outer(start).backward()
    loss_fn(oracles.inner_loop(loss_fn, reference, support, plain(0.1), 2)[0], query).backward()
    expected = {name: value.grad for name, value in reference.items()}
    assert_trees({name: value.grad for name, value in start.items()}, expected, 1e-8)
    assert_trees(torch.func.grad(outer)(params), expected, 1e-8)


@rules
def test_gradient_of_a_tensor_learning_rate(rule: str) -> None:
    loss_fn, params, support, query = problem()
    pure, plain = RULES[rule]

    def outer(lr: Tensor) -> Tensor:
        adapted = adapt(loss_fn, params, support, optimizer=pure(lr), steps=3)
        return loss_fn(adapted.params, query)

    def plainly(at: oracles.Tree) -> float:
        end, _ = oracles.inner_loop(loss_fn, fresh(params), support, plain(at["lr"]), 3)
        return float(loss_fn(end, query).detach())

    lr = torch.tensor(0.07, dtype=torch.float64)
    expected = oracles.central_differences(plainly, {"lr": lr})
    assert_trees({"lr": torch.func.grad(outer)(lr)}, expected, 1e-7)
    leaf = lr.clone().requires_grad_()
    outer(leaf).backward()
    assert_trees({"lr": leaf.grad}, expected, 1e-7)


def test_support_losses_can_be_differentiated() -> None:
    loss_fn, params, support, _ = problem()
    grads = torch.func.grad(
        lambda start: adapt(loss_fn, start, support, optimizer=sgd(0.1), steps=1).losses.sum()
    )(params)
    assert_trees(grads, torch.func.grad(loss_fn)(params, support), 1e-12)


class Layer(NamedTuple):
    weight: Tensor
    bias: Tensor


def test_nested_trees_keep_their_shape() -> None:
    params = {
        "layers": [Layer(torch.ones(2, 2), torch.zeros(2)), (torch.full((2,), 2.0),)],
        "unused": torch.ones(1),
    }

    def loss_fn(tree: Any, x: Tensor) -> Tensor:
        first, (second,) = tree["layers"]
        return ((x @ first.weight + first.bias) * second).mean()

    x = torch.tensor([[1.0, 2.0]])
    adapted = adapt(loss_fn, params, x, optimizer=sgd(0.5), steps=1).params
    assert isinstance(adapted["layers"][0], Layer) and isinstance(adapted["layers"][1], tuple)
    assert adapted["layers"][0].bias.tolist() == [-0.5, -0.5]  # d/db mean(2 (x + b)) = 1 each
    assert adapted["layers"][0].weight.tolist() == [[0.5, 0.5], [0.0, 0.0]]
    assert adapted["layers"][1][0].tolist() == [1.25, 1.25]
    assert adapted["unused"].tolist() == [1.0]


def test_a_bare_tensor_is_a_tree() -> None:
    adapted = adapt(
        lambda w, x: (w * x).mean(), torch.tensor(2.0), torch.tensor([3.0]),
        optimizer=sgd(0.1), steps=2,
    )  # fmt: skip
    assert float(adapted.params) == pytest.approx(2 - 2 * 0.1 * 3)
    assert adapted.losses.tolist() == pytest.approx([6.0, 5.1])


@pytest.mark.parametrize("optimizer", [sgd(0.3), sgd(0.3, momentum=0.9), adam(0.3)])
def test_unused_parameters_keep_their_value(optimizer: InnerOptimizer) -> None:
    params = {"used": torch.ones(2), "unused": torch.tensor([5.0, -5.0])}
    adapted = adapt(
        lambda p, x: (p["used"] * x).sum(), params, torch.ones(2), optimizer=optimizer, steps=3
    )
    assert torch.equal(adapted.params["unused"], params["unused"])
    assert not torch.equal(adapted.params["used"], params["used"])


@pytest.mark.parametrize("optimizer", [sgd(0.3, momentum=0.9, weight_decay=0.5), adam(0.3)])
@pytest.mark.parametrize("frozen", ["0.*", ["0.weight", "0.b*"]])
def test_frozen_parameters_do_not_move(optimizer: InnerOptimizer, frozen: Any) -> None:
    loss_fn, params, support, _ = problem()
    adapted = adapt(loss_fn, params, support, optimizer=optimizer, steps=2, frozen=frozen).params
    moved = {name for name in params if not torch.equal(adapted[name], params[name])}
    assert moved == {name for name in params if not name.startswith("0.")}
    assert list(adapted) == list(params)


def test_all_frozen_stays_where_it_is() -> None:
    loss_fn, params, support, _ = problem()
    adapted = adapt(loss_fn, params, support, optimizer=sgd(0.1), steps=2, frozen="*")
    assert_trees(adapted.params, params, 0.0)
    assert adapted.losses.tolist() == [float(loss_fn(params, support))] * 2


def test_vmap_over_tasks_and_over_starts_equals_loops() -> None:
    case = oracles.classification(oracles.mlp(), (2,), tasks=3)

    def one(params: Any, support: Any) -> Any:
        return adapt(case.loss_fn, params, support, optimizer=adam(0.1), steps=2)

    members = torch.func.vmap(torch.func.vmap(one, in_dims=(None, 0)), in_dims=(0, None))
    stacked = {name: torch.stack([value, value + 0.1]) for name, value in case.params.items()}
    batched = members(stacked, case.tasks.support)
    assert batched.losses.shape == (2, 3, 2)
    for m, t in itertools.product(range(2), range(3)):
        start = {name: value[m] for name, value in stacked.items()}
        alone = one(start, oracles.task_list(case.tasks)[t][0])
        actual = {name: value[m, t] for name, value in batched.params.items()}
        assert_trees(actual, alone.params, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 2])
def test_dtype_is_that_of_the_parameters(dtype: torch.dtype, steps: int) -> None:
    params = {"w": torch.ones(2, dtype=dtype)}
    adapted = adapt(
        lambda p, x: (p["w"] * x).sum(), params, torch.ones(2, dtype=dtype),
        optimizer=adam(0.1), steps=steps,
    )  # fmt: skip
    assert adapted.losses.dtype == dtype and adapted.losses.shape == (steps,)
    assert {leaf.dtype for leaf in leaves(adapted.params)} == {dtype}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, r"^steps=-1: a whole number of at least 0"),
        ({"steps": 1.5}, r"^steps=1\.5: a whole number of at least 0"),
        ({"steps": True}, r"^steps=True: a whole number of at least 0"),
        ({"frozen": "head.*"}, r"^frozen='head\.\*': a pattern that matches a parameter of w"),
        ({"params": {"w": torch.ones(2).long()}}, r"^params\[w\]=torch\.int64: a floating-point"),
        ({"params": {"a": {"w": 1.0}}}, r"^params\[a\.w\]='float': a floating-point tensor"),
        ({"params": {}}, r"^params=\{\}: a tree with at least one tensor"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"params": {"w": torch.ones(2)}, "steps": 1, "optimizer": sgd(0.1), **changes}
    params = settings.pop("params")
    with pytest.raises(SettingError, match=message):
        adapt(lambda p, x: p["w"].sum(), params, torch.ones(1), **settings)
