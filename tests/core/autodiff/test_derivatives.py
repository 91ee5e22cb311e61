"""Jacobians, Hessians and their products against closed forms, plain autograd, finite differences.

Axes: P inputs, O outputs, M parameter sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize, ggn_vp, hessian, hvp, jacobian, jacobian_mode, jvp, vjp
from metalearn.errors import SettingError
from tests.support import oracles

close = torch.testing.assert_close


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=oracles.generator(seed), dtype=torch.float64)


def rows_by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``[*y, *x]``, one backward pass for each output element."""
    x = x.clone().requires_grad_()
    y = f(x)
    grads = [
        torch.autograd.grad(v, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for v in y.flatten()
    ]
    return torch.stack(grads).view(*y.shape, *x.shape).detach()


def hessian_by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    def slope(x: Tensor) -> Tensor:
        return torch.autograd.grad(f(x), x, create_graph=True)[0]

    return rows_by_autograd(slope, x)


def finite_differences(f: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    columns = []
    for i in range(x.numel()):
        e = torch.zeros_like(x).flatten()
        e[i] = step
        e = e.view_as(x)
        columns.append((f(x + e) - f(x - e)) / (2 * step))
    return torch.stack(columns, -1).view(*columns[0].shape, *x.shape)


WEIGHT = noise(3, 4, seed=1)


def tanh_layer(x: Tensor) -> Tensor:
    return torch.tanh(WEIGHT @ x)


def polynomials(x: Tensor) -> Tensor:
    return torch.stack([2 * x[0] ** 2, 2 * x[0] * x[1], 2 * x[0], torch.ones_like(x[0])])


# --- Jacobians -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 100])
def test_a_jacobian_is_that_of_autograd_and_of_differences(
    mode: Any, chunk_size: int | None
) -> None:
    x = noise(4)
    found = jacobian(tanh_layer, mode=mode, chunk_size=chunk_size)(x)
    close(found, rows_by_autograd(tanh_layer, x), rtol=0, atol=1e-12)
    close(found, finite_differences(tanh_layer, x), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_jacobians_in_closed_form(mode: Any) -> None:
    x = noise(2)
    a, b = x
    wanted = torch.stack(
        [
            torch.stack([4 * a, 0 * a]),
            torch.stack([2 * b, 2 * a]),
            torch.stack([2 + 0 * a, 0 * a]),
            torch.stack([0 * a, 0 * a]),
        ]
    )
    close(jacobian(polynomials, mode=mode)(x), wanted)
    for f, slope in (
        (torch.sin, torch.cos),
        (torch.exp, torch.exp),
        (torch.square, lambda v: 2 * v),
    ):
        close(jacobian(f, mode=mode)(x), torch.diag(slope(x)))
    close(jacobian(lambda x: WEIGHT @ x, mode=mode)(noise(4)), WEIGHT)


@pytest.mark.parametrize(
    ("inputs", "outputs", "mode"), [(16, 16, "reverse"), (64, 3, "reverse"), (3, 64, "forward")]
)
def test_the_mode_follows_from_the_shapes(inputs: int, outputs: int, mode: str) -> None:
    weight = noise(outputs, inputs)

    def f(x: Tensor) -> Tensor:
        return torch.tanh(weight @ x)

    x = noise(inputs, seed=2)
    assert jacobian_mode(f, (x,)) == mode
    close(jacobian(f)(x), rows_by_autograd(f, x), rtol=0, atol=1e-12)


def test_trees_in_and_out_and_keywords() -> None:
    params = {"w": noise(2, 3), "deep": (noise(2, seed=1), [noise(3, seed=2)])}

    def f(params: Any, x: Tensor, *, scale: float) -> dict[str, Tensor]:
        bias, (shift,) = params["deep"]
        y = scale * torch.sin(params["w"] @ (x + shift)) + bias
        return {"y": y, "norm": y.square().sum()}

    x = noise(3, seed=3)
    for mode in ("forward", "reverse"):
        found = jacobian(f, mode=mode)(params, x, scale=0.7)  # type: ignore[arg-type]
        assert found["y"]["w"].shape == (2, 2, 3) and found["norm"]["deep"][1][0].shape == (3,)

        def of_w(w: Tensor) -> Tensor:
            return f({**params, "w": w}, x, scale=0.7)["y"]

        close(found["y"]["w"], rows_by_autograd(of_w, params["w"]), rtol=0, atol=1e-12)
    both = jacobian(f, argnums=(0, 1))(params, x, scale=0.7)["y"]
    close(both[0]["w"], found["y"]["w"])
    close(both[1], rows_by_autograd(lambda x: f(params, x, scale=0.7)["y"], x), rtol=0, atol=1e-12)


def test_an_argument_without_effect_has_zeros() -> None:
    for mode in ("forward", "reverse"):
        found = jacobian(lambda a, b: a * 2, argnums=1, mode=mode)(noise(2), noise(3))  # type: ignore[arg-type]
        assert found.shape == (2, 3) and not found.any()


def test_batched_jacobians_by_vmap_and_by_summing_outputs() -> None:
    """For a function that maps samples one by one, the gradient of a sum over samples is exact."""
    xs = noise(5, 4)
    by_vmap = torch.func.vmap(jacobian(tanh_layer))(xs)
    summed = jacobian(lambda xs: torch.func.vmap(tanh_layer)(xs).sum(0))(xs)  # [O, B, P]
    close(by_vmap, summed.movedim(1, 0), rtol=0, atol=1e-12)
    close(by_vmap, torch.stack([rows_by_autograd(tanh_layer, x) for x in xs]), rtol=0, atol=1e-12)


# --- Hessians --------------------------------------------------------------------------------


def quartic(x: Tensor) -> Tensor:
    return (torch.sin(x[0] * x[1]) + x.square().sum().square() + x.prod()).squeeze()


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_hessian_is_symmetric_and_the_jacobian_of_the_gradient(
    mode: Any, chunk_size: int | None
) -> None:
    x = noise(3)
    found = hessian(quartic, mode=mode, chunk_size=chunk_size)(x)
    close(found, found.mT, rtol=0, atol=1e-12)
    close(found, hessian_by_autograd(quartic, x), rtol=0, atol=1e-12)
    close(found, jacobian(torch.func.grad(quartic))(x), rtol=0, atol=1e-12)
    close(found, finite_differences(torch.func.grad(quartic), x), rtol=0, atol=1e-7)


def test_the_hessian_of_linear_regression_in_closed_form() -> None:
    """½·mean (xᵀw + b − y)²: blocks XᵀX/N, Xᵀ1/N, 1."""
    x, y, n = noise(6, 3), noise(6, seed=1), 6

    def loss(params: dict[str, Tensor]) -> Tensor:
        return 0.5 * (x @ params["w"] + params["b"] - y).square().mean()

    params = {"b": noise(1, seed=2), "w": noise(3, seed=3)}
    blocks = hessian(loss)(params)
    close(blocks["w"]["w"], x.T @ x / n)
    close(blocks["w"]["b"], x.mean(0)[:, None])
    close(blocks["b"]["b"], torch.ones(1, 1, dtype=torch.float64))
    matrix = hessian(loss, as_matrix=True)(params)  # b before w, as in the tree
    rows = [torch.cat([blocks[a][b] for b in params], 1) for a in params]
    close(matrix, torch.cat(rows, 0))
    slope = torch.func.grad(loss)(params)
    residual = x @ params["w"] + params["b"] - y
    close(slope["w"], x.T @ residual / n)
    close(jacobian(lambda w: x @ w)(params["w"]), x)


def test_hessians_of_several_outputs() -> None:
    x = noise(2)
    found = hessian(polynomials)(x)
    wanted = torch.zeros(4, 2, 2, dtype=torch.float64)
    wanted[0, 0, 0] = 4
    wanted[1, 0, 1] = wanted[1, 1, 0] = 2
    close(found, wanted)


# --- products --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["forward_over_reverse", "reverse_over_reverse"])
def test_hessian_products_are_matrix_products(mode: Any) -> None:
    x, v = noise(3), noise(3, seed=1)
    close(hvp(quartic, x, v, mode=mode), hessian_by_autograd(quartic, x) @ v, rtol=0, atol=1e-12)


def test_products_with_jacobians() -> None:
    x, v, u = noise(4), noise(4, seed=1), noise(3, seed=2)
    matrix = rows_by_autograd(tanh_layer, x)
    y, forward = jvp(tanh_layer, x, v)
    close((y, forward), (tanh_layer(x), matrix @ v), rtol=0, atol=1e-12)
    y, back = vjp(tanh_layer, x, u)
    close((y, back), (tanh_layer(x), matrix.T @ u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("criterion", ["cross_entropy", "mse"])
def test_gauss_newton_products(criterion: str) -> None:
    """Jᵀ·H_L·J·v with every matrix written out."""
    x, y = noise(5, 4), torch.tensor([0, 1, 2, 1, 0])
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    apply, params, _ = functionalize(net)
    vector = {n: noise(*p.shape, seed=i) for i, (n, p) in enumerate(params.items())}

    def output_loss(z: Tensor) -> Tensor:
        if criterion == "cross_entropy":
            return F.cross_entropy(z, y)
        return (z - noise(5, 3, seed=9)).square().mean()

    def outputs(params: Any) -> Any:
        return apply(params, {}, x)

    found = ggn_vp(outputs, output_loss, params, vector)
    flat = torch.cat([p.flatten() for p in params.values()])
    sizes = [p.numel() for p in params.values()]

    def of_flat(flat: Tensor) -> Tensor:
        parts = (part.view_as(p) for part, p in zip(flat.split(sizes), params.values()))
        return outputs(dict(zip(params, parts))).flatten()

    j = rows_by_autograd(of_flat, flat)
    z = outputs(params).flatten()
    h = hessian_by_autograd(lambda z: output_loss(z.view(5, 3)), z)
    v = torch.cat([vector[n].flatten() for n in params])
    close(torch.cat([found[n].flatten() for n in params]), j.T @ h @ j @ v, rtol=0, atol=1e-12)


def test_the_functional_gradient_is_that_of_backward() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)).double()
    apply, params, _ = functionalize(net)
    x = noise(6, 3)
    torch.autograd.backward(net(x).square().mean())
    found = torch.func.grad(lambda p: apply(p, {}, x).square().mean())(params)
    for name, p in net.named_parameters():
        close(found[name], p.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: jacobian(lambda x: torch.tanh(w @ x), mode="forward")(x),
        lambda w, x: jacobian(lambda x: torch.tanh(w @ x), mode="reverse", chunk_size=2)(x),
        lambda w, x: hessian(lambda w: torch.tanh(w @ x).square().sum())(w),
        lambda w, x: hvp(lambda w: torch.tanh(w @ x).square().sum(), w, w.cos()),
        lambda w, x: hvp(
            lambda w: torch.tanh(w @ x).square().sum(), w, w.cos(), mode="reverse_over_reverse"
        ),
        lambda w, x: ggn_vp(lambda w: torch.tanh(w @ x), lambda z: z.exp().sum(), w, w.cos()),
        lambda w, x: jvp(lambda w: w @ x, w, w.cos())[1],
        lambda w, x: vjp(lambda w: w.sin() @ x, w, x[:2])[1],
    ],
)
def test_everything_inside_an_outer_vmap(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A stack of parameter sets, each with data of its own."""
    ws, xs = noise(4, 2, 3), noise(4, 3, seed=1)
    wanted = torch.stack([function(w, x) for w, x in zip(ws, xs)])
    close(torch.func.vmap(function)(ws, xs), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: jacobian(tanh_layer, mode="sideways"), r"mode='sideways': one of auto, forward"),  # type: ignore[arg-type]
        (
            lambda x: jacobian(tanh_layer, chunk_size=0),
            "chunk_size=0: a whole number of at least 1",
        ),
        (lambda x: jacobian(tanh_layer, argnums=1)(x), "argnums=1: f got 1 positional"),
        (lambda x: jacobian(tanh_layer)(x.long()), "floating-point"),
        (lambda x: jacobian(lambda x: x.argmax())(x), "floating-point"),
        (lambda x: hvp(tanh_layer, x, x), "a scalar is needed"),
        (lambda x: hvp(quartic, x, x[:2]), r"tangents=.*the shape \(4,\) is needed"),
        (lambda x: hvp(quartic, {"a": x}, {"b": x}), r"tangents=\['b'\]: a tree with \['a'\]"),
        (lambda x: hvp(quartic, x, x, mode="forward"), "mode='forward': one of"),  # type: ignore[arg-type]
        (lambda x: ggn_vp(tanh_layer, lambda z: z, x, x), "a scalar is needed"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[[Tensor], Any], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        call(noise(4))
