"""Products with Jacobians, Hessians and Gauss–Newton matrices against the dense matrices."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import ggn_vp, hvp, jvp, vjp
from metalearn.errors import SettingError
from tests.support.derivative_oracles import (
    dense_gradient,
    dense_hessian,
    dense_jacobian,
    difference_jacobian,
    like,
    mapped,
    matches,
    noise,
    vector,
)

MODES: Any = ["forward_over_reverse", "reverse_over_reverse"]
cross_entropy, mse_loss = nn.functional.cross_entropy, nn.functional.mse_loss


def params_of() -> dict[str, Any]:
    """Lists, tuples and a scalar in a dict whose keys are not sorted; one leaf has no effect."""
    layers = [(noise(4, 3, seed=1), noise(4, seed=2)), (noise(3, 4, seed=3), noise(3, seed=4))]
    return {"layers": layers, "gain": noise(seed=5), "aside": noise(2, seed=6)}


def network(params: Any, *, inputs: Tensor) -> Tensor:
    (w1, b1), (w2, b2) = params["layers"]
    return (torch.tanh(inputs @ w1.T + b1) * params["gain"]) @ w2.T + b2


def loss_of(params: Any, *, inputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(network(params, inputs=inputs), targets)


def data(seed: int = 0) -> dict[str, Tensor]:
    return {"inputs": noise(5, 3, seed=seed + 10), "targets": torch.arange(5) % 3}


def along(tree: Any, seed: int = 20) -> Any:
    return like(tree, noise(len(vector(tree)), seed=seed))


@pytest.mark.parametrize("mode", MODES)
def test_hvp_is_the_product_with_the_dense_hessian(mode: Any) -> None:
    params, v = params_of(), along(params_of())
    found = hvp(loss_of, params, v, mode=mode, **data())
    expected = dense_hessian(loss_of, params, **data()) @ vector(v)
    matches(found, like(params, expected))
    assert torch.equal(found["aside"], torch.zeros(2).double())

    gradient = lambda tree: dense_gradient(loss_of, tree, **data())  # noqa: E731
    slopes = difference_jacobian(lambda t: gradient(like(params, vector(params) + t * vector(v))),
                                 torch.zeros(1).double())  # fmt: skip
    matches(vector(found), slopes[:, 0], 1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_a_tuple_of_primals_stands_for_several_arguments(mode: Any) -> None:
    """x₁²x₂ has the Hessian ((2x₂, 2x₁), (2x₁, 0)); a list is one argument."""
    a, b, u, v = (noise(seed=s) for s in range(4))
    f = lambda a, b: a**2 * b  # noqa: E731
    matches(hvp(f, (a, b), (u, v), mode=mode), (2 * b * u + 2 * a * v, 2 * a * u))
    matches(hvp(lambda ab: f(*ab), [a, b], [u, v], mode=mode),
            [2 * b * u + 2 * a * v, 2 * a * u])  # fmt: skip
    matches(hvp(f, (a,), (u,), mode=mode, b=b), (2 * b * u,))
    matches(hvp(f, a, u, mode=mode, b=b), 2 * b * u)


def several(params: Any, *, inputs: Tensor) -> dict[str, Any]:
    outputs = network(params, inputs=inputs)
    return {"z": outputs, "rest": (outputs.sum(), torch.ones(2).double())}


def test_jvp_and_vjp_are_products_with_the_dense_jacobian() -> None:
    params, x = params_of(), data()["inputs"]
    outputs, dense = several(params, inputs=x), dense_jacobian(several, params, inputs=x)
    v, u = along(params), along(outputs)
    matches(jvp(several, params, v, inputs=x), (outputs, like(outputs, dense @ vector(v))))
    matches(vjp(several, params, u, inputs=x), (outputs, like(params, dense.mT @ vector(u))))
    for product, direction in ((jvp, (v["gain"], v["aside"])), (vjp, x[0])):
        f = lambda a, b, *, shift: a * shift + b.prod()  # noqa: E731
        args = (params["gain"], params["aside"])
        matrix = dense_jacobian(f, *args, shift=x[0])
        if product is vjp:
            expected = like(args, matrix.mT @ vector(direction))
        else:
            expected = matrix @ vector(direction)
        matches(product(f, args, direction, shift=x[0]), (f(*args, shift=x[0]), expected))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "sum", "huber"])
def test_ggn_vp_is_the_product_with_the_matrix_assembled(loss: str) -> None:
    """Jᵀ ∇²L J: softmax covariances over N for cross-entropy, 2/(N·C) for MSE, by its own mean."""
    params, x, targets = params_of(), data()["inputs"], data()["targets"]
    z, rows = network(params, inputs=x), dense_jacobian(network, params, inputs=x)
    p = z.softmax(1)
    losses: dict[str, Any] = {
        "cross_entropy": lambda z: cross_entropy(z, targets),
        "mse": lambda z: mse_loss(z, torch.cos(x)),
        "sum": lambda z: mse_loss(z, torch.cos(x), reduction="sum"),
        "huber": lambda z: nn.functional.huber_loss(z, torch.cos(x)),
    }
    curvatures: dict[str, Any] = {
        "cross_entropy": torch.block_diag(*(torch.diag(q) - torch.outer(q, q) for q in p)) / 5,
        "mse": torch.eye(15).double() * 2 / 15,
        "sum": torch.eye(15).double() * 2,
        "huber": torch.diag(((z - torch.cos(x)).abs() < 1).double().reshape(-1)) / 15,
    }
    v = along(params)
    found = ggn_vp(network, losses[loss], params, v, inputs=x)
    matches(found, like(params, rows.mT @ curvatures[loss] @ rows @ vector(v)))


def test_ggn_vp_of_trees_of_outputs_and_of_several_arguments() -> None:
    """With outputs that are their own parameters, the GGN is the Hessian of the loss."""
    a, b = noise(2), noise(seed=1)
    loss = lambda z: (z["x"] ** 3).sum() * z["y"][0]  # noqa: E731
    expected = dense_hessian(lambda a, b: loss({"x": a, "y": [b]}), a, b)
    v = along((a, b))
    found = ggn_vp(lambda a, b: {"x": a, "y": [b]}, loss, (a, b), v)
    matches(found, like((a, b), expected @ vector(v)))


def test_a_linear_model_has_a_ggn_equal_to_its_hessian() -> None:
    params, x, y = {"w": noise(3), "b": noise(seed=1)}, noise(6, 3, seed=2), noise(6, seed=3)
    predict = lambda p: x @ p["w"] + p["b"]  # noqa: E731
    v = along(params)
    found = ggn_vp(predict, lambda z: mse_loss(z, y), params, v)
    matches(found, hvp(lambda p: ((predict(p) - y) ** 2).mean(), params, v))


def test_every_product_inside_outer_vmaps_of_members_tasks_and_vectors() -> None:
    params = params_of()
    members = mapped(lambda x: torch.stack([x, torch.cos(x), 2 * x]), params)
    tasks = {"inputs": torch.stack([data(s)["inputs"] for s in range(2)]),
             "targets": torch.stack([data()["targets"], data()["targets"].flip(0)])}  # fmt: skip
    vectors = mapped(lambda x: torch.stack([torch.sin(x), x]), params)

    def products(params: Any, v: Any, inputs: Tensor, targets: Tensor) -> Any:
        given = {"inputs": inputs, "targets": targets}
        z = lambda z: cross_entropy(z, targets)  # noqa: E731
        u = torch.sin(network(v, inputs=inputs))
        return [
            *(hvp(loss_of, params, v, mode=mode, **given) for mode in MODES),
            ggn_vp(network, z, params, v, inputs=inputs),
            jvp(network, params, v, inputs=inputs),
            vjp(network, params, u, inputs=inputs),
        ]

    over_tasks = torch.vmap(products, in_dims=(None, None, 0, 0))
    over_vectors = torch.vmap(over_tasks, in_dims=(None, 0, None, None))
    over_members = torch.vmap(over_vectors, in_dims=(0, None, None, None))
    stack = over_members(members, vectors, tasks["inputs"], tasks["targets"])
    for m in range(3):
        for k in range(2):
            for t in range(2):
                one = mapped(lambda x, at=(m, k, t): x[at], stack)
                alone, v = (
                    mapped(lambda x, m=m: x[m], members),
                    mapped(lambda x, k=k: x[k], vectors),
                )
                task = {name: value[t] for name, value in tasks.items()}
                matches(one, products(alone, v, **task))
                expected = dense_hessian(loss_of, alone, **task) @ vector(v)
                matches(vector(one[0]), expected)


def test_products_of_functions_that_take_gradients_or_map_themselves() -> None:
    """The query loss after a gradient step, of vmapped samples; alone and inside a vmap."""
    params, given = {"w": noise(3)}, noise(4, 3, seed=1)
    sample = lambda p, x: torch.sin(p["w"] @ x)  # noqa: E731

    def task(p: Any) -> Tensor:
        return torch.vmap(sample, in_dims=(None, 0))(p, given).square().sum()

    def after(p: Any) -> Tensor:
        return task({"w": p["w"] - 0.1 * torch.func.grad(task)(p)["w"]})

    def by_hand(p: Any) -> Tensor:
        z = given @ p["w"]
        return torch.sin(given @ (p["w"] - 0.1 * given.mT @ torch.sin(2 * z))).square().sum()

    v, one = along(params), torch.tensor(1.0).double()
    dense = dense_hessian(by_hand, params)
    for mode in MODES:
        take = partial(hvp, after, mode=mode)
        matches(take(params, v), like(params, dense @ vector(v)))
        stacked = mapped(lambda x: torch.stack([x, x]), params)
        matches(torch.vmap(take, in_dims=(0, None))(stacked, v)["w"][1], dense @ vector(v))
    slope = dense_gradient(by_hand, params)
    matches(torch.vmap(lambda u: vjp(after, params, u)[1]["w"])(one[None])[0], slope)
    pushed = torch.vmap(lambda w: jvp(after, params, {"w": w})[1])(v["w"][None])
    matches(pushed[0], slope @ v["w"])


def test_products_can_be_trained_through() -> None:
    """f = (w·x)³ has vᵀHv = 6 (w·x) (x·v)², whose gradient is 6 (x·v)² x."""
    w, x, v = noise(3).requires_grad_(), noise(3, seed=1), noise(3, seed=2)
    f = lambda w: (w @ x) ** 3  # noqa: E731
    for mode in MODES:
        (found,) = torch.autograd.grad(hvp(f, w, v, mode=mode) @ v, w)
        matches(found, 6 * (x @ v) ** 2 * x)


def test_bad_inputs() -> None:
    params, v = {"a": noise(2), "b": [noise(1)]}, {"a": noise(2), "b": [noise(1)]}
    f = lambda p: (p["a"] ** 2).sum() * p["b"][0].sum()  # noqa: E731
    with pytest.raises(SettingError, match="mode='reverse': one of forward_over_reverse, reverse_"):
        hvp(f, params, v, mode="reverse")  # type: ignore[arg-type]
    takes: list[Any] = [*(partial(hvp, f, mode=m) for m in MODES), partial(jvp, f)]
    for take in [*takes, partial(ggn_vp, f, lambda z: z)]:
        gauss_newton = take.func is ggn_vp
        name, point = ("vector", "params") if gauss_newton else ("tangents", "primals")
        with pytest.raises(SettingError, match=rf"{name}=\['a'\]: a tree with \['a', 'b.0'\]"):
            take(params, {"a": v["a"]})
        with pytest.raises(
            SettingError, match=rf"{name}\[b.0\]=\(2,\): the shape \(1,\) is needed"
        ):
            take(params, {"a": v["a"], "b": [v["a"]]})
        with pytest.raises(SettingError, match=rf"{name}\[a\]='float': the shape \(2,\) is needed"):
            take(params, {"a": 1.0, "b": v["b"]})
        with pytest.raises(SettingError, match=rf"{point}\[a\]=torch.int64: a floating-point"):
            take({"a": torch.arange(2), "b": v["b"]}, v)
        with pytest.raises(SettingError, match=rf"{point}={{}}: a tree with at least one tensor"):
            take({}, {})
    for mode in MODES:
        with pytest.raises(SettingError, match=r"f=\(2,\): a scalar is needed, a tensor without"):
            hvp(lambda p: p["a"], params, v, mode=mode)
    with pytest.raises(SettingError, match=r"output_loss=\(2,\): a scalar is needed"):
        ggn_vp(lambda p: p["a"], lambda z: z, params, v)
    for take, direction in ((jvp, v), (vjp, noise(2))):
        with pytest.raises(SettingError, match=r"f\(\*primals\)=torch.int64: a floating-point"):
            take(lambda p: p["a"].long(), params, direction)
    with pytest.raises(SettingError, match=r"cotangents=\(3,\): the shape \(2,\) is needed"):
        vjp(lambda p: p["a"], params, noise(3))
    with pytest.raises(SettingError, match=r"cotangents=\[''\]: a tree with \['y'\] is needed"):
        vjp(lambda p: {"y": p["a"]}, params, noise(2))


def test_vectors_with_keys_in_another_order_or_of_another_precision() -> None:
    params, v = {"a": noise(2), "b": noise(1)}, {"b": noise(1, seed=1), "a": noise(2, seed=2)}
    f = lambda p: (p["a"] ** 3).sum() * p["b"].sum()  # noqa: E731
    ordered = {"a": v["a"], "b": v["b"]}
    single = mapped(lambda x: x.float(), ordered)
    for mode in MODES:
        expected = like(params, dense_hessian(f, params) @ vector(ordered))
        matches(hvp(f, params, v, mode=mode), expected)
        matches(hvp(f, params, single, mode=mode), expected, 1e-6)
    matches(vjp(lambda p: p, params, v)[1], ordered)


@pytest.mark.parametrize("take", [partial(hvp, mode=mode) for mode in MODES] + [jvp])
def test_whole_numbers_are_no_directions(take: Any) -> None:
    with pytest.raises(SettingError, match="tangents=torch.int64: a floating-point tensor is"):
        take(lambda x: (x**2).sum(), noise(2), torch.ones(2).long())
