"""Jacobians, Hessians and their products: closed forms, both modes, differences, outer vmaps."""

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
    jacobian_mode,
    jvp,
    vjp,
)
from metalearn.errors import SettingError
from tests.core.networks import case, noise, scaled, tiny_bert
from tests.oracles import assert_trees, draw

MODES = pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
SECOND = pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def quadratic(x: Tensor) -> Tensor:
    return torch.stack([2 * x[0] ** 2, 2 * x[0] * x[1], 2 * x[0]])


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


@MODES
def test_jacobian_and_hessian_of_polynomials(mode: Any) -> None:
    x = torch.tensor([3.0, 5.0], dtype=torch.float64)
    close(jacobian(quadratic, mode=mode)(x), x.new_tensor([[12, 0], [10, 6], [2, 0]]))
    blocks = x.new_tensor([[[4, 0], [0, 0]], [[0, 2], [2, 0]], [[0, 0], [0, 0]]])
    close(hessian(quadratic, mode=mode)(x), blocks)
    close(hessian(quadratic, as_matrix=True, mode=mode)(x), blocks)


@MODES
def test_linear_regression_has_its_analytic_derivatives(mode: Any) -> None:
    x, y, w, b = noise(6, 2), noise(6), noise(2), noise(1)
    params = {"w": w, "b": b}

    def residuals(params: Any) -> Tensor:
        return x @ params["w"] + params["b"] - y

    found = jacobian(residuals, mode=mode)(params)
    close(found["w"], x)
    close(found["b"], torch.ones(6, 1, dtype=torch.float64))
    blocks = hessian(lambda p: residuals(p).square().mean(), mode=mode)(params)
    close(blocks["w"]["w"], 2 * x.T @ x / 6)
    close(blocks["w"]["b"], 2 * x.mean(0)[:, None])
    close(blocks["b"]["w"], 2 * x.mean(0)[None])
    close(blocks["b"]["b"], torch.full((1, 1), 2.0, dtype=torch.float64))


@MODES
def test_element_wise_functions_are_diagonal(mode: Any) -> None:
    x = noise(5)
    close(jacobian(torch.sin, mode=mode)(x), x.cos().diag())
    close(hessian(lambda x: x.exp().sum(), mode=mode)(x), x.exp().diag())
    close(hessian(torch.exp, mode=mode)(x), torch.diag_embed(x.exp().diag()))


def test_mode_is_chosen_by_shape() -> None:
    wide, tall = noise(2, 5), noise(5, 2)
    assert jacobian_mode(lambda x: wide @ x, (noise(5),)) == "reverse"
    assert jacobian_mode(lambda x: tall @ x, (noise(2),)) == "forward"
    assert jacobian_mode(torch.sin, (noise(3),)) == "reverse"
    assert jacobian_mode(lambda a, b, k: k * a * b, (noise(1), noise(3)), 0, k=2) == "forward"
    for matrix in (wide, tall):
        close(jacobian(lambda x, matrix=matrix: matrix @ x)(noise(matrix.shape[1])), matrix)


@MODES
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_trees_in_and_out_keywords_and_chunks(mode: Any, chunk_size: Any) -> None:
    def f(params: Any, x: Tensor, *, power: int, offset: Tensor) -> Any:
        y = params["a"] * x**power + params["b"].sum()
        return {"y": y, "both": (y.sum(), offset)}

    params, x = {"a": noise(2), "b": noise(1, 3)}, noise(2)
    take = jacobian(f, (0, 1), mode=mode, chunk_size=chunk_size)
    found = take(params, x, power=2, offset=noise(2))
    for_params, for_x = found["y"]
    close(for_params["a"], (x**2).diag())
    close(for_params["b"], torch.ones(2, 1, 3, dtype=torch.float64))
    close(for_x, (2 * params["a"] * x).diag())
    close(found["both"][0][0]["a"], x**2)
    close(found["both"][1][1], torch.zeros(2, 2, dtype=torch.float64))
    blocks = hessian(lambda p, x: f(p, x, power=3, offset=x)["y"].sum(), (0, 1), mode=mode,
                     chunk_size=chunk_size)(params, x)  # fmt: skip
    close(blocks[1][1], (6 * params["a"] * x).diag())
    close(blocks[0]["a"][1], (3 * x**2).diag())
    close(blocks[1][0]["b"], torch.zeros(2, 1, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["mlp", "convolutions", "attention", "sequences"])
def test_hessian_of_a_module(name: str) -> None:
    """Through fused norms too, where a derivative of a vmapped derivative would be wrong."""
    loss_fn, params, batch, _ = case(name)
    keep = sorted(params)[-4:]
    part = {key: params[key] for key in keep}

    def loss(part: Any) -> Tensor:
        return loss_fn(params | part, batch)

    exact = backward_hessian(loss, part)
    matrix = hessian(loss, as_matrix=True)(part)
    close(matrix, exact)
    close(matrix, matrix.T)
    close(hessian(loss, as_matrix=True, mode="forward", chunk_size=5)(part), exact)
    close(hessian(loss)(part)[keep[0]][keep[1]].reshape(part[keep[0]].numel(), -1),
          exact[: part[keep[0]].numel(), part[keep[0]].numel() :][:, : part[keep[1]].numel()])  # fmt: skip
    if name in ("mlp", "attention"):
        columns = jacobian(grad(loss), mode="forward")(part)
        blocks = hessian(loss)(part)
        assert_trees(columns[keep[0]], blocks[keep[0]])


def test_hessians_of_vectors_through_a_norm_equal_those_of_each_entry() -> None:
    layers = (nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 2))
    apply, params, buffers = functionalize(draw(nn.Sequential(*layers)))
    whole = hessian(lambda p: apply(p, buffers, noise(2)), as_matrix=True)(params)
    for i in range(2):
        exact = backward_hessian(lambda p, i=i: apply(p, buffers, noise(2))[i], params)
        order = torch.cat([torch.full((p.numel(),), j) for j, p in enumerate(params.values())])
        names = sorted(params)
        index = torch.cat([(order == list(params).index(n)).nonzero()[:, 0] for n in names])
        close(whole[i][index][:, index], exact)


def test_forward_is_reverse_is_finite_difference() -> None:
    loss_fn, params, (x, y), _ = case("mlp")
    vector = flat(params)

    def of(vector: Tensor) -> Tensor:
        parts = vector.split([params[n].numel() for n in sorted(params)])
        tree = {n: v.view(params[n].shape) for n, v in zip(sorted(params), parts)}
        return vmap(lambda x, y: loss_fn(tree, (x[None], y[None])))(x, y)

    forward, reverse = (jacobian(of, mode=m)(vector) for m in ("forward", "reverse"))
    close(forward, reverse)
    step = 1e-5 * torch.eye(len(vector), dtype=torch.float64)
    slopes = [(of(vector + h) - of(vector - h)) / 2e-5 for h in step]
    close(torch.stack(slopes, 1), forward, rtol=1e-6, atol=1e-8)


def test_batched_jacobian_by_vmap_and_by_summed_outputs() -> None:
    _, params, (x, _), module = case("mlp")
    apply, params, buffers = functionalize(module)
    by_vmap = vmap(jacobian(lambda x: apply(params, buffers, x)))(x)
    by_sum = jacobian(lambda x: apply(params, buffers, x).sum(0))(x).transpose(0, 1)
    close(by_vmap, by_sum)


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


@SECOND
def test_hvp_of_several_arguments(mode: Any) -> None:
    a, b, u, v = noise(2), noise(2) + 1, noise(2) * 2, noise(2) - 3
    found = hvp(lambda a, b: (a**2 * b).sum(), (a, b), (u, v), mode=mode)
    close(found, (2 * b * u + 2 * a * v, 2 * a * u))


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


def test_ggn_of_a_linear_model_is_its_hessian() -> None:
    x, w, v = noise(5, 2), noise(2), noise(2) + 1
    found = ggn_vp(lambda w: x @ w, lambda z: z.exp().mean(), w, v)
    close(found, hvp(lambda w: (x @ w).exp().mean(), w, v))


def test_products_through_module_parameters() -> None:
    _, params, (x, _), module = case("mlp")
    apply, params, buffers = functionalize(module)
    tangents = {key: value.cos() for key, value in params.items()}
    f = lambda params, x: apply(params, buffers, x)  # noqa: E731
    matrix = jacobian(f)(params, x)
    outputs, along = jvp(f, params, tangents, x=x)
    close(outputs, f(params, x))
    close(along, sum((matrix[n] * tangents[n]).flatten(2).sum(2) for n in params))
    outputs, back = vjp(f, params, outputs, x=x)
    close(back["0.weight"], torch.einsum("no,nohi->hi", outputs, matrix["0.weight"]))


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jacobian(torch.sin, mode="both"), "mode='both': one of auto, forward, reverse"),
        (lambda: jacobian(torch.sin, chunk_size=0), "chunk_size=0: a whole number of at least 1"),
        (lambda: jacobian(torch.sin, 1)(noise(2)), "argnums=1: f got 1 positional arguments"),
        (lambda: jacobian(torch.sin)(torch.arange(3)), r"args\[0\]=torch.int64: a floating-point"),
        (lambda: jacobian(lambda x: 3)(noise(2)), r"f\(\*args\)='int': a floating-point tensor"),
        (lambda: hessian(torch.sin, mode=None), "mode=None: one of"),
        (lambda: hvp(torch.sin, noise(2), noise(2)), r"f=\(2,\): a scalar is needed"),
        (lambda: hvp(torch.sum, noise(2), noise(3)), r"tangents=\(3,\): the shape \(2,\)"),
        (lambda: hvp(torch.sum, noise(2), noise(2), mode="rr"), "mode='rr': one of forward_over"),
        (lambda: jvp(torch.sin, {"a": noise(2)}, {"b": noise(2)}), r"tangents=\['b'\]: a tree"),
        (lambda: vjp(torch.sin, noise(2), noise(1)), r"cotangents=\(1,\): the shape \(2,\)"),
        (lambda: jvp(torch.sin, {}, {}), r"primals=\{\}: a tree with at least one tensor"),
    ],
)  # fmt: skip
def test_bad_inputs_are_refused_with_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
