"""Derivatives of networks, through norms and attention, inside outer vmaps, and of a tiny BERT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from metalearn.core import (
    functionalize,
    ggn_vp,
    hessian,
    hvp,
    jacobian,
)
from tests.support.networks import case, noise, scaled, tiny_bert
from tests.support.oracles import assert_trees, draw

MODES = pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
SECOND = pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def flat(tree: Any) -> Tensor:
    return torch.cat([tree[name].reshape(-1) for name in sorted(tree)])


def backward_hessian(loss: Callable[[Any], Tensor], params: Any) -> Tensor:
    """Row by row with ordinary autograd; parameters in the order of their names."""
    values = {name: params[name].clone().requires_grad_() for name in sorted(params)}
    inputs = list(values.values())
    first = torch.autograd.grad(loss(values), inputs, create_graph=True)
    rows = []
    for entry in torch.cat([g.reshape(-1) for g in first]):
        row = torch.autograd.grad(entry, inputs, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in row]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention", "sequences"])
def test_hessian_of_a_module(name: str) -> None:
    """Through fused norms too, where a derivative of a vmapped derivative would be wrong."""
    loss_fn, params, batch, _ = case(name)
    # forward mode sees a padding row vary, which reverse mode takes as fixed
    keep = [key for key in sorted(params) if key != "table.weight"][-4:]
    part = {key: params[key] for key in keep}

    def loss(part: Any) -> Tensor:
        return loss_fn(params | part, batch)

    exact = backward_hessian(loss, part)
    matrix = hessian(loss, as_matrix=True)(part)
    close(matrix, exact)
    close(matrix, matrix.T)
    close(hessian(loss, as_matrix=True, mode="forward", chunk_size=5)(part), exact)
    first, second = (part[key].numel() for key in keep[:2])
    block = hessian(loss)(part)[keep[0]][keep[1]]
    close(block.reshape(first, second), exact[:first, first : first + second])
    if name in ("mlp", "attention"):
        columns = jacobian(grad(loss), mode="forward")(part)
        blocks = hessian(loss)(part)
        assert_trees(columns[keep[0]], blocks[keep[0]])


def test_hessians_of_vectors_through_a_norm_equal_those_of_each_entry() -> None:
    layers = (nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2))
    apply, params, buffers = functionalize(draw(nn.Sequential(*layers)))
    x = noise(2)
    whole = hessian(lambda p: apply(p, buffers, x), as_matrix=True)(params)
    for i in range(2):
        exact = backward_hessian(lambda p, i=i: apply(p, buffers, x)[i], params)
        order = torch.cat([torch.full((p.numel(),), j) for j, p in enumerate(params.values())])
        names = sorted(params)
        index = torch.cat([(order == list(params).index(n)).nonzero()[:, 0] for n in names])
        close(whole[i][index][:, index], exact)


@SECOND
def test_hvp_is_the_hessian_times_the_vector(mode: Any) -> None:
    loss_fn, params, batch, _ = case("sequences")
    part = {key: params[key] for key in sorted(params)[-4:]}
    vector = {key: value.cos() for key, value in part.items()}

    def loss(part: Any, *, batch: Any) -> Tensor:
        return loss_fn(params | part, batch)

    found = hvp(loss, part, vector, mode=mode, batch=batch)
    exact = backward_hessian(partial(loss, batch=batch), part)
    close(flat(found), exact @ flat(vector))
    stack = vmap(lambda v: hvp(loss, part, v, mode=mode, batch=batch))(scaled(vector))
    close(flat({k: v[1] for k, v in stack.items()}), 1.1 * flat(found))
    members = vmap(lambda p: hvp(loss, p, vector, mode=mode, batch=batch))(scaled(part))
    other = hvp(loss, {k: 1.1 * v for k, v in part.items()}, vector, mode=mode, batch=batch)
    assert_trees({k: v[1] for k, v in members.items()}, other)


def test_ggn_is_the_dense_product() -> None:
    _, params, (x, y), module = case("mlp")
    apply, params, buffers = functionalize(module)
    vector = {key: value.cos() for key, value in params.items()}

    def outputs(params: Any, *, x: Tensor) -> Tensor:
        return apply(params, buffers, x)

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, y)

    z = outputs(params, x=x)
    blocks = jacobian(partial(outputs, x=x))(params)
    dense = torch.cat([blocks[n].reshape(z.numel(), -1) for n in sorted(params)], 1)
    curve = hessian(loss)(z).reshape(z.numel(), z.numel())
    found = ggn_vp(outputs, loss, params, vector, x=x)
    close(flat(found), dense.T @ curve @ dense @ flat(vector))
    stack = vmap(lambda p, v: ggn_vp(outputs, loss, p, v, x=x))(scaled(params), scaled(vector))
    assert_trees({k: v[0] for k, v in stack.items()}, found)


@MODES
def test_functions_that_take_gradients_themselves_inside_vmap(mode: Any) -> None:
    u = lambda x: (x.sin() * x.roll(1)).sum()  # noqa: E731
    x = noise(4, 3)
    exact = torch.stack([hessian(u)(row) for row in x])
    close(vmap(jacobian(grad(u), mode=mode))(x), exact)
    close(vmap(hessian(u, mode=mode))(x), exact)
    square = lambda z: z.square().sum()  # noqa: E731
    found = vmap(lambda v: ggn_vp(grad(u), square, x[0], v))(x)
    close(found, 2 * x @ exact[0] @ exact[0])


def test_members_by_tasks() -> None:
    loss_fn, params, (x, y), _ = case("mlp")
    tasks = (torch.stack([x, x + 1, 2 * x]), torch.stack([y, y, y.flip(0)]))

    def top(params: Any, batch: Any) -> Tensor:
        return hessian(lambda b: loss_fn(params | {"2.bias": b}, batch))(params["2.bias"])

    found = vmap(vmap(top, (None, 0)), (0, None))(scaled(params), tasks)
    other = {key: 1.1 * value for key, value in params.items()}
    close(found[1, 2], top(other, (tasks[0][2], tasks[1][2])))


def test_tiny_bert() -> None:
    pytest.importorskip("transformers")
    loss_fn, params, batch, _ = tiny_bert()
    names = ["classifier.bias", "bert.encoder.layer.0.attention.self.query.weight"]
    part = {name: params[name] for name in names}

    def loss(part: Any, **batch: Tensor) -> Tensor:
        return loss_fn(params | part, batch)

    exact = backward_hessian(lambda part: loss(part, **batch), part)
    vector = {name: value.cos() for name, value in part.items()}
    for mode in ("forward_over_reverse", "reverse_over_reverse"):
        close(flat(hvp(loss, part, vector, mode=mode, **batch)), exact @ flat(vector))
    per_sample = lambda part, **batch: vmap(  # noqa: E731
        lambda sample: loss(part, **{k: v[None] for k, v in sample.items()})
    )(batch)
    forward, reverse = (
        jacobian(per_sample, mode=mode)(part, **batch) for mode in ("forward", "reverse")
    )
    assert_trees(forward, reverse)
    assert_trees({k: v.mean(0) for k, v in reverse.items()}, grad(loss)(part, **batch))
