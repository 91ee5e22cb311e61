"""Gradients that nobody reads are left out, and what is taken of them in turn stays exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn.core.ops.convolution import convolution
from metalearn.core.ops.unread import leaf_unread, recording_unread
from metalearn.core.ops.windows import window_of

WINDOW = window_of((3, 3), (1, 1), (1, 1), (1, 1))
REARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "leaf": lambda w: w,
    "permuted": lambda w: w.view(2, 4, 3, 9).transpose(2, 3).reshape(2, 4, 27).clone(),
}
COMPUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda w: w * 2,
    "normed": lambda w: w / w.norm(),
    "bent": torch.tanh,
}


def _draw(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _slope(make: Callable[[Tensor], Tensor], *, unread: bool) -> tuple[Tensor, Tensor, bool]:
    """The gradient of a loss, a product with its Hessian, and whether the weight is a leaf."""
    x, weight = _draw(2, 3, 5, 5, 3, seed=0), _draw(2, 4, 27, seed=1).requires_grad_()
    with recording_unread() as record:
        own = make(weight)
        is_leaf = leaf_unread(own) is record
        hidden = convolution(x, own, None, WINDOW)
        loss = convolution(hidden.tanh(), own[..., :9].repeat(1, 1, 4), None, WINDOW).tanh().sum()
    if unread:
        with record.taking():
            (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    else:
        (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    (product,) = torch.autograd.grad((slope * _draw(2, 4, 27, seed=2)).sum(), weight)
    return slope.detach(), product, is_leaf


@pytest.mark.parametrize("name", REARRANGED)
def test_a_leaf_that_is_not_read_has_the_same_hessian_product(name: str) -> None:
    right, found = (_slope(REARRANGED[name], unread=unread) for unread in (False, True))
    assert found[2]
    assert not torch.allclose(found[0], right[0])  # left out
    torch.testing.assert_close(found[1], right[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", COMPUTED)
def test_of_anything_computed_the_gradient_is_taken(name: str) -> None:
    right, found = (_slope(COMPUTED[name], unread=unread) for unread in (False, True))
    assert not found[2]
    for a, b in zip(found[:2], right[:2]):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_taken_while_recording_are_read() -> None:
    x, weight = _draw(2, 3, 5, 5, 3, seed=0), _draw(2, 4, 27, seed=1).requires_grad_()
    (right,) = torch.autograd.grad(convolution(x, weight, None, WINDOW).tanh().sum(), weight)
    with recording_unread():
        loss = convolution(x, weight, None, WINDOW).tanh().sum()
        (found,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(found, right, rtol=0, atol=0)


def test_nothing_is_left_out_where_nothing_is_recorded() -> None:
    assert leaf_unread(_draw(2, 4, 27, seed=1).requires_grad_()) is None
