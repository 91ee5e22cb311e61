"""Both ways of taking gradients against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Eager, Functional

calculi = pytest.mark.parametrize("calculus", [Eager(), Functional()], ids=["eager", "functional"])


def cubes(inputs: Any) -> Tensor:
    return (inputs[0] ** 3).sum() * 2


@calculi
@pytest.mark.parametrize("differentiable", [True, False])
def test_gradient_and_value(calculus: Any, differentiable: bool) -> None:
    inputs = [torch.tensor([1.0, 2.0]), torch.ones(2)]
    grads, value = calculus.gradient(cubes, inputs, differentiable=differentiable)
    assert grads[0].tolist() == [6.0, 24.0] and grads[1].tolist() == [0.0, 0.0]
    assert float(value) == 18.0


def test_eager_gradients_are_differentiable_on_request_alone() -> None:
    start = torch.tensor([1.0, 2.0], requires_grad=True)
    grads, value = Eager().gradient(cubes, [start, start], differentiable=True)
    assert torch.autograd.grad(grads[0].sum(), start)[0].tolist() == [12.0, 24.0]
    assert not value.requires_grad
    grads, _ = Eager().gradient(cubes, [start, start], differentiable=False)
    assert not grads[0].requires_grad and start.grad is None


def test_a_value_for_each_task_gives_each_task_its_own_gradient() -> None:
    x = torch.tensor([[1.0], [3.0]])
    grads, value = Eager().gradient(lambda v: (v[0] ** 2).sum(1), [x], differentiable=False)
    assert grads[0].tolist() == [[2.0], [6.0]] and value.tolist() == [1.0, 9.0]


@calculi
def test_pull_is_the_transposed_jacobian_and_can_be_used_again(calculus: Any) -> None:
    """f(x, y, z) = (x·y, x²) with z unused: Jᵀ(a, b) = (a·y + 2b·x, a·x, 0)."""
    x, y, z = torch.tensor([2.0]), torch.tensor([5.0]), torch.ones(3)
    pull = calculus.pull(lambda v: [v[0] * v[1], v[0] ** 2], [x, y, z])
    for a, b in ((1.0, 0.0), (0.5, 3.0)):
        pulled = pull([torch.tensor([a]), torch.tensor([b])])
        assert [v.tolist() for v in pulled] == [[a * 5 + 2 * b * 2], [a * 2], [0.0, 0.0, 0.0]]


@calculi
def test_pull_of_a_function_that_takes_gradients(calculus: Any) -> None:
    """The Hessian product of Σx³ is 6·x·v."""

    def slope(v: list[Tensor]) -> list[Tensor]:
        return calculus.gradient(lambda u: (u[0] ** 3).sum(), v, differentiable=True)[0]

    x = torch.tensor([1.0, 2.0])
    (product,) = calculus.pull(slope, [x])([torch.tensor([1.0, 0.5])])
    assert product.tolist() == [6.0, 6.0]
    if isinstance(calculus, Functional):
        mapped = torch.func.vmap(lambda w: calculus.pull(slope, [w])([torch.ones(2)])[0])
        assert mapped(torch.stack([x, 2 * x])).tolist() == [[6.0, 12.0], [12.0, 24.0]]


def test_no_inputs_still_have_a_value() -> None:
    grads, value = Eager().gradient(lambda v: torch.ones(()), [], differentiable=False)
    assert grads == [] and float(value) == 1.0
