"""Dense derivatives over trees by loops of torch.autograd.grad, without torch.func.

Axes: Y all output elements, P all input elements, in the order in which leaves are written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.oracles import generator

Function = Callable[..., Any]


def leaves(tree: Any) -> list[Tensor]:
    """Depth first; dicts in the order of their keys' insertion."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree
    return [leaf for part in parts for leaf in leaves(part)]


def mapped(function: Callable[[Tensor], Any], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(function, part) for key, part in tree.items()}
    parts = [mapped(function, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def vector(tree: Any) -> Tensor:
    """All elements, leaf after leaf."""
    return torch.cat([leaf.detach().reshape(-1) for leaf in leaves(tree)])


def like(tree: Any, values: Tensor) -> Any:
    """The tree with the elements of ``values`` in place of its own; inverse of `vector`."""
    parts = iter(torch.split(values, [leaf.numel() for leaf in leaves(tree)]))
    return mapped(lambda leaf: next(parts).reshape(leaf.shape), tree)


def tracked(tree: Any) -> Any:
    return mapped(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def rows_of(elements: Tensor, inputs: list[Tensor]) -> Tensor:
    """Gradient of each element by each input, [Y, P]; zero where there is no path."""
    rows = []
    for element in elements.reshape(-1):
        if element.requires_grad:
            grads = torch.autograd.grad(
                element, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            grads = tuple(torch.zeros_like(x) for x in inputs)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return torch.stack(rows)


def dense_jacobian(f: Function, *trees: Any, **kwargs: Any) -> Tensor:
    """[Y, P] over all arguments, one backward pass for each output element."""
    args = [tracked(tree) for tree in trees]
    outputs = torch.cat([y.reshape(-1) for y in leaves(f(*args, **kwargs))])
    return rows_of(outputs, leaves(args))


def dense_gradient(f: Function, *trees: Any, **kwargs: Any) -> Tensor:
    return dense_jacobian(f, *trees, **kwargs)[0]


def dense_hessian(f: Function, *trees: Any, **kwargs: Any) -> Tensor:
    """[P, P] of a scalar, each entry of the gradient differentiated alone."""
    args = [tracked(tree) for tree in trees]
    inputs = leaves(args)
    grads = torch.autograd.grad(
        f(*args, **kwargs), inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return rows_of(torch.cat([g.reshape(-1) for g in grads]), inputs)


def difference_jacobian(f: Function, tree: Any, width: float = 1e-5, **kwargs: Any) -> Tensor:
    """(f(x + h e_i) − f(x − h e_i)) / 2h, column by column, [Y, P]."""
    start, columns = vector(tree), []
    for i in range(len(start)):
        step = torch.zeros_like(start)
        step[i] = width
        ends = [vector(f(like(tree, start + sign * step), **kwargs)) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * width))
    return torch.stack(columns, dim=1)


def assembled(blocks: Any, outputs: Any, inputs: Any) -> Tensor:
    """A tree of blocks ``[*y, *x]`` as one matrix [Y, P]; every block's shape is checked."""
    rows = []
    count = len(leaves(inputs))
    parts = leaves(blocks)
    assert len(parts) == count * len(leaves(outputs))
    for j, y in enumerate(leaves(outputs)):
        row = parts[j * count : (j + 1) * count]
        for block, x in zip(row, leaves(inputs)):
            assert block.shape == y.shape + x.shape
        rows.append(
            torch.cat([b.reshape(y.numel(), x.numel()) for b, x in zip(row, leaves(inputs))], 1)
        )
    return torch.cat(rows)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def matches(actual: Any, expected: Any, tolerance: float = 1e-11) -> None:
    """The same structure, shapes and dtypes, within ``tolerance`` relative to the largest entry."""
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        size = max(float(expected.abs().max()), 1e-12)
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * size)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            matches(actual[key], expected[key], tolerance)
    else:
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            matches(one, other, tolerance)
