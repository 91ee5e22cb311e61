"""Gradients of learnt step sizes against finite differences of the meta-loss, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import InnerOptimizer, adam, meta_gradient, sgd
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.oracles import Problem, Rule, Tree, assert_trees

STEPS = 3
MAKES: dict[str, tuple[Callable[..., InnerOptimizer], Callable[..., Rule], dict[str, Any]]] = {
    "sgd": (sgd, oracles.sgd_rule, {}),
    "momentum": (sgd, oracles.sgd_rule, {"momentum": 0.9}),
    "weight_decay": (sgd, oracles.sgd_rule, {"momentum": 0.5, "weight_decay": 0.1}),
    "adam": (adam, oracles.adam_rule, {"betas": (0.8, 0.95)}),
}
makes = pytest.mark.parametrize("make", MAKES)
engines = pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
exact_methods = pytest.mark.parametrize("method", ["reverse", "mixed"])
shapes = pytest.mark.parametrize("shape", ["scalar", "leaves", "elements"])


def problem() -> Problem:
    return oracles.classification(oracles.mlp(), (2,), tasks=3)


def rates_of(shape: str, params: Tree) -> Any:
    """One step size, one for each leaf, or one for each element, all different."""
    source = oracles.generator(4)

    def some(*size: int) -> Tensor:
        return 0.05 + 0.2 * torch.rand(size, generator=source, dtype=torch.float64)

    if shape == "scalar":
        return some()
    return {n: some(*(p.shape if shape == "elements" else ())) for n, p in params.items()}


def scaled(rule: Rule, rates: list[Tensor]) -> Rule:
    """A rule of step size 1 with a step size for each leaf: every step is linear in it."""

    def step(values: list[Tensor], grads: list[Tensor], memory: dict[str, Any]) -> list[Tensor]:
        moved = rule(values, grads, memory)
        return [v + rate * (m - v) for v, m, rate in zip(values, moved, rates)]

    return step


@cache
def by_differences(make: str, shape: str, frozen: tuple[str, ...] = ()) -> Tree:
    """Of the mean query loss with respect to the step sizes; a scalar one stands under ''."""
    case, (_, rule, settings) = problem(), MAKES[make]
    rates = rates_of(shape, case.params)
    if frozen:
        rates = {name: rate for name, rate in rates.items() if name not in frozen}

    def value(tree: Tree) -> float:
        each = list(tree.values()) * (len(case.params) if "" in tree else 1)
        return oracles.meta_loss(case, scaled(rule(1.0, **settings), each), STEPS, frozen=frozen)

    return oracles.central_differences(value, {"": rates} if isinstance(rates, Tensor) else rates)


def named(tree: Any) -> Tree:
    return {"": tree} if isinstance(tree, Tensor) else tree


@makes
@shapes
@exact_methods
def test_gradients_equal_finite_differences(method: str, shape: str, make: str) -> None:
    case = problem()
    rates = rates_of(shape, case.params)
    optimizer = MAKES[make][0](rates, **MAKES[make][2])
    result = meta_gradient(*case, optimizer=optimizer, steps=STEPS, method=method)
    expected = by_differences(make, shape)
    assert_trees(named(result.optimizer_grads), expected, 1e-6)
    for grad, rate in zip(leaves(result.optimizer_grads), leaves(rates)):
        assert grad.shape == rate.shape and not grad.requires_grad
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3


@makes
@shapes
def test_methods_engines_and_chunks_agree(shape: str, make: str) -> None:
    case = oracles.classification(oracles.conv(), (1, 4, 4), tasks=3)
    optimizer = MAKES[make][0](rates_of(shape, case.params), **MAKES[make][2])
    tolerance = 1e-6 if make == "adam" else 1e-10  # Adam's root magnifies rounding
    whole = meta_gradient(*case, optimizer=optimizer, steps=2, engine="loop")
    for method in ("reverse", "mixed"):
        for engine, chunk in (("batched", None), ("vmap", None), ("loop", 1), ("batched", 2)):
            other = meta_gradient(
                *case, optimizer=optimizer, steps=2, method=method, engine=engine, chunk_size=chunk
            )
            assert_trees(other.grads, whole.grads, tolerance)
            assert_trees(named(other.optimizer_grads), named(whole.optimizer_grads), tolerance)


@engines
@exact_methods
def test_one_step_of_descent_in_closed_form(engine: str, method: str) -> None:
    """L = ½(θ − s)²: θ' = θ − α(θ − s), so d/dα of ½(θ' − q)² is −(θ − s)(θ' − q)."""
    s, q = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    theta, alpha = torch.tensor(0.3).double(), torch.tensor(0.2).double()
    result = meta_gradient(
        lambda p, c: 0.5 * (p - c).square(), theta, TaskBatch(s, q),
        optimizer=sgd(alpha), steps=1, method=method, engine=engine,
    )  # fmt: skip
    moved = theta - alpha * (theta - s)
    torch.testing.assert_close(result.optimizer_grads, (-(theta - s) * (moved - q)).mean())
    torch.testing.assert_close(result.grads, ((1 - alpha) * (moved - q)).mean())


@engines
@exact_methods
@pytest.mark.parametrize("make", ["momentum", "adam"])
def test_frozen_leaves_have_no_step_size(engine: str, method: str, make: str) -> None:
    case = problem()
    every = rates_of("elements", case.params)
    rates = {name: rate for name, rate in every.items() if not name.startswith("0.")}
    result = meta_gradient(
        *case, optimizer=MAKES[make][0](rates, **MAKES[make][2]), steps=STEPS, method=method,
        engine=engine, frozen="0.*",
    )  # fmt: skip
    expected = by_differences(make, "elements", ("0.weight", "0.bias"))
    assert_trees(result.optimizer_grads, expected, 1e-6)


@engines
@exact_methods
def test_no_steps_give_zeros(engine: str, method: str) -> None:
    case, rate = problem(), torch.tensor(0.1).double()
    result = meta_gradient(*case, optimizer=sgd(rate), steps=0, method=method, engine=engine)
    assert torch.equal(result.optimizer_grads, torch.zeros_like(rate))


@engines
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order", "implicit"])
def test_a_plain_number_is_not_learnt(engine: str, method: str) -> None:
    case = problem()
    for optimizer in (sgd(0.1), adam(0.1), sgd(0.1, momentum=0.9)):
        result = meta_gradient(*case, optimizer=optimizer, steps=2, method=method, engine=engine)
        assert result.optimizer_grads == () and leaves(optimizer.learnt) == []
        assert optimizer.with_learnt(()) is optimizer


@makes
def test_a_learnt_rate_moves_as_a_plain_one_does(make: str) -> None:
    case, (new, _, settings) = problem(), MAKES[make]
    plain = meta_gradient(*case, optimizer=new(0.25, **settings), steps=STEPS)
    rate = torch.tensor(0.25).double()
    for rates in (rate, dict.fromkeys(case.params, rate)):
        learnt = meta_gradient(*case, optimizer=new(rates, **settings), steps=STEPS)
        assert_trees(learnt.grads, plain.grads, 1e-10)
        torch.testing.assert_close(learnt.query_losses, plain.query_losses)


@makes
def test_rebuilding_keeps_the_other_settings(make: str) -> None:
    case, (new, _, settings) = problem(), MAKES[make]
    first, second = rates_of("scalar", case.params), rates_of("leaves", case.params)
    rebuilt = new(first, **settings).with_learnt(second)
    assert rebuilt.learnt is second and rebuilt.elementwise
    actual, expected = (
        meta_gradient(*case, optimizer=optimizer, steps=STEPS)
        for optimizer in (rebuilt, new(second, **settings))
    )
    assert_trees(actual.grads, expected.grads, 0.0)


@engines
@pytest.mark.parametrize("new", [sgd, adam])
@pytest.mark.parametrize(("count", "frozen", "needed"), [(2, None, 6), (7, None, 6), (6, "0.*", 4)])
def test_a_wrong_number_of_step_sizes_is_refused(
    new: Any, count: int, frozen: str | None, needed: int, engine: str
) -> None:
    rates = [torch.tensor(0.1).double() for _ in range(count)]
    message = rf"^lr='{count} tensors': {needed} are needed, one a leaf$"
    with pytest.raises(SettingError, match=message):
        meta_gradient(*problem(), optimizer=new(rates), steps=1, engine=engine, frozen=frozen)


@pytest.mark.parametrize("new", [sgd, adam])
@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([], r"^lr=\[\]: a number, a scalar tensor or a tree of tensors is needed$"),
        ({}, r"^lr=\{\}: a number, a scalar tensor or a tree of tensors"),
        ([0.1, 0.2], r"^lr=\[0\.1, 0\.2\]: a number, a scalar tensor or a tree of tensors"),
        ("fast", r"^lr='fast': a number, a scalar tensor or a tree of tensors"),
        (torch.ones(2, 1), r"^lr=\[2, 1\]: a number, a scalar tensor or one with a value for each"),
    ],
    ids=str,
)
def test_step_sizes_that_are_not_tensors_are_refused(new: Any, rates: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        new(rates)


def test_rates_are_named_as_the_parameters_in_their_order() -> None:
    case = oracles.classification(oracles.mlp(), (2,))
    rates = {name: torch.full_like(p, 0.1) for name, p in reversed(case.params.items())}
    with pytest.raises(SettingError, match=r"^lr=\['4\.bias', .*one for each of \['0\.weight', "):
        meta_gradient(*case, optimizer=sgd(rates), steps=1)
