"""Layer calls as losses may make them, sample by sample against a loop of backward passes.

Axes: N samples, M parameter sets, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import (
    check_per_sample,
    clipped_gradient,
    ghost_parameters,
    per_sample_gradients,
    per_sample_norms,
)
from metalearn.core.samples.convolution_gradients import ConvolutionGradients
from metalearn.errors import SettingError
from tests.support.sample_oracles import build, looped, noise, norms_of

close = partial(torch.testing.assert_close, rtol=0, atol=1e-11)
Loss = Callable[[Any, Any], Tensor]


def linear(params: Any, batch: Any) -> Tensor:
    return F.linear(batch[0], params["w"], params.get("b")).square().sum(-1).mean()


def detached(params: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        target = F.linear(batch[0], params["w"])
    return (F.linear(batch[0], params["w"]) - 2 * target - 1).square().mean()


def decayed(params: Any, batch: Any) -> Tensor:
    decay = 0.1 * params["w"].square().sum() + params["b"].square().sum()
    return linear(params, batch) + decay


def aside(params: Any, batch: Any) -> Tensor:
    """A call whose output goes nowhere."""
    F.linear(batch[0], params["v"])
    return linear(params, batch)


def scaled_weight(params: Any, batch: Any) -> Tensor:
    """What a layer is called with is no parameter; its bias is one."""
    return F.linear(batch[0], 2 * params["w"], params["b"]).sin().sum(-1).mean()


def product_of_weights(params: Any, batch: Any) -> Tensor:
    """A product that no sample has a part in."""
    return (batch[0] @ (params["w"] @ params["v"])).sin().sum(-1).mean()


def scale_of_weight(params: Any, batch: Any) -> Tensor:
    return F.linear(batch[0], params["w"] * params["b"]).sin().sum(-1).mean()


def view_without_gradient(params: Any, batch: Any) -> Tensor:
    with torch.no_grad():
        fixed = params["w"].t()
    return (batch[0] @ fixed + batch[0] @ params["v"].t()).sin().sum(-1).mean()


def shared_bias(params: Any, batch: Any) -> Tensor:
    hidden = F.linear(batch[0], params["w"], params["b"])
    return F.linear(hidden, params["v"], params["b"]).square().mean()


def bias_as_weight(params: Any, batch: Any) -> Tensor:
    return F.linear(F.linear(batch[0], params["w"], params["b"]), params["b"][None]).sin().mean()


def fixed_input(params: Any, batch: Any) -> Tensor:
    """A layer whose input no sample changes."""
    table = F.linear(torch.eye(3, dtype=torch.float64), params["w"], params["b"])
    return (batch[0] @ table).square().mean()


def inside_vmap(params: Any, batch: Any) -> Tensor:
    return torch.func.vmap(lambda row: F.linear(row, params["w"]))(batch[0]).sin().mean()


def inside_grad(params: Any, batch: Any) -> Tensor:
    """A penalty on the gradient by the input."""
    inner = torch.func.grad(lambda x: F.linear(x, params["w"]).sin().sum())(batch[0])
    return inner.square().mean()


def lookup(params: Any, batch: Any) -> Tensor:
    return F.embedding(batch[0], params["w"]).sin().sum() / len(batch[0])


def lookup_padded(params: Any, batch: Any) -> Tensor:
    return F.embedding(batch[0], params["w"], padding_idx=-1).sin().sum() / len(batch[0])


def lookup_positions(params: Any, batch: Any) -> Tensor:
    return (F.embedding(torch.arange(3), params["w"]) * batch[0]).sin().sum() / len(batch[0])


def lookup_scalar(params: Any, batch: Any) -> Tensor:
    return F.embedding(batch[0][0], params["w"]).sin().sum()


W, B, X = noise(3, 3, seed=1), noise(3, seed=2), noise(4, 3, seed=3)
WORDS = torch.tensor([[0, 4], [4, 4], [2, 2], [1, 0]])
CASES: dict[str, tuple[Loss, dict[str, Tensor], Tensor, set[str]]] = {
    "one output": (linear, {"w": noise(3)}, noise(4, 5, 3), set()),
    "one output of a row": (
        lambda p, b: F.linear(b[0], p["w"]).sin().mean(), {"w": B}, X, set()),
    "one bias for all outputs": (linear, {"w": W, "b": noise(1)}, X, set()),
    "no axis of samples": (
        lambda p, b: F.linear(b[0][0], p["w"]).square().sum(), {"w": W}, X, {"w"}),
    "positions, few": (linear, {"w": noise(8, 9), "b": noise(8)}, noise(4, 2, 9), {"w", "b"}),
    "positions, many": (linear, {"w": noise(2, 3), "b": noise(2)}, noise(4, 3, 5, 3), {"w", "b"}),
    "scalar parameter": (
        lambda p, b: (p["a"] * F.linear(b[0], p["w"])).square().mean(),
        {"a": noise(1)[0], "w": W}, X, {"a", "w"}),
    "empty parameter": (
        lambda p, b: linear(p, b) + p["e"].sum(), {"e": noise(0), "w": W}, X, {"w"}),
    "under no_grad as well": (detached, {"w": W}, X, {"w"}),
    "weight decay": (decayed, {"w": W, "b": B}, X, set()),
    "aside": (aside, {"w": W, "v": W}, X, {"w"}),
    "scaled weight": (scaled_weight, {"w": W, "b": B}, X, {"b"}),
    "product of weights": (product_of_weights, {"w": W, "v": W.T.clone()}, X, set()),
    "scale of a weight": (scale_of_weight, {"w": W, "b": B}, X, set()),
    "view without gradient": (view_without_gradient, {"w": W, "v": W.sin()}, X, {"v"}),
    "shared bias": (shared_bias, {"w": W, "v": W.T.clone(), "b": B}, X, {"w", "v", "b"}),
    "bias as weight": (bias_as_weight, {"w": W, "b": B}, X, {"w"}),
    "fixed input": (fixed_input, {"w": W, "b": B}, X, {"w", "b"}),
    "inside vmap": (inside_vmap, {"w": W}, X, set()),
    "inside grad": (inside_grad, {"w": W}, X, set()),
    "lookup": (lookup, {"w": noise(5, 3)}, WORDS, {"w"}),
    "lookup, padded": (lookup_padded, {"w": noise(5, 3)}, WORDS, {"w"}),
    "lookup of positions": (lookup_positions, {"w": noise(3, 3)}, noise(4, 3, 3), {"w"}),
    "lookup of one word": (lookup_scalar, {"w": noise(5, 3)}, WORDS[:, 0], {"w"}),
}  # fmt: skip
PICTURES: dict[str, tuple[tuple[int, int, int, int], tuple[int, int], dict[str, Any]]] = {
    "few": ((1, 2, 6, 5), (3, 3), {}),
    "few, one place": ((1, 2, 3, 3), (3, 3), {}),
    "few, uneven": ((1, 3, 6, 7), (2, 3), {"stride": (2, 1), "padding": (1, 0)}),
    "few, several": ((2, 2, 5, 5), (3, 3), {"dilation": 2, "padding": 2}),
    "few, same": ((1, 2, 5, 5), (3, 3), {"padding": "same", "dilation": 2}),
    "few, valid": ((1, 2, 5, 5), (3, 3), {"padding": "valid"}),
    "many": ((1, 9, 5, 5), (3, 3), {"padding": 1}),
    "many, one place": ((1, 9, 3, 3), (3, 3), {}),
    "many, strided": ((1, 9, 7, 6), (3, 2), {"stride": 2, "padding": 1, "dilation": 2}),
    "many, several": ((2, 9, 5, 5), (3, 3), {}),
    "many, pixels": ((1, 9, 4, 4), (1, 1), {}),
    "large": ((1, 8, 12, 12), (3, 3), {}),
    "large, strided": ((1, 8, 24, 22), (3, 3), {"stride": 2, "padding": 1}),
    "large, several": ((2, 8, 13, 12), (3, 3), {"dilation": 2, "padding": 2}),
}


def pictured(name: str) -> tuple[Loss, dict[str, Tensor], Any]:
    shape, size, settings = PICTURES[name]

    def loss(params: Any, batch: Any) -> Tensor:
        z = F.conv2d(batch[0].flatten(0, 1), params["w"], params["b"], **settings)
        return torch.tanh(z).square().sum() / len(batch[0])

    params = {"w": noise(3, shape[1], *size) / 4, "b": noise(3, seed=1)}
    return loss, params, (noise(4, *shape),)


def assert_as_looped(loss: Loss, params: dict[str, Tensor], batch: Any) -> None:
    wanted = looped(loss, params, batch)
    norms = {n: g.reshape(len(g), -1).norm(dim=1) for n, g in wanted.items()}
    total = torch.stack(list(norms.values())).norm(dim=0)
    for method in ("layers", "vmap"):
        found = per_sample_gradients(loss, params, batch, method=method)  # type: ignore[arg-type]
        by_leaf: Any = per_sample_norms(loss, params, batch, by_leaf=True, method=method)  # type: ignore[arg-type]
        for n in params:
            close(found[n], wanted[n], msg=f"{method} {n}")
            close(by_leaf[n], norms[n], atol=1e-9, msg=f"{method} {n}")
        close(per_sample_norms(loss, params, batch, method=method), total, atol=1e-9)  # type: ignore[arg-type]
    factors = (0.5 / total).clamp(max=1)
    clipped = clipped_gradient(loss, params, batch, max_norm=0.5, chunk_size=3)
    for n, g in wanted.items():
        close(clipped.grads[n], torch.tensordot(factors, g, 1) / len(total), msg=f"clipped {n}")


@pytest.mark.parametrize("name", CASES)
def test_calls_of_many_kinds(name: str) -> None:
    loss, params, x, ghosts = CASES[name]
    assert_as_looped(loss, params, (x,))
    assert {n for n, ghost in ghost_parameters(loss, params, (x,)).items() if ghost} == ghosts


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_many_kinds(name: str) -> None:
    loss, params, batch = pictured(name)
    assert_as_looped(loss, params, batch)
    assert all(ghost_parameters(loss, params, batch).values())


def test_pictures_of_many_channels_go_to_grouped_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    for way in ("_by_groups", "_columns"):
        plain = getattr(ConvolutionGradients, way)

        def spy(*args: Any, plain: Any = plain, way: str = way) -> Any:
            seen.append(way)
            return plain(*args)

        monkeypatch.setattr(ConvolutionGradients, way, spy)
    for name in ("few", "many", "large", "large, strided", "large, several"):
        per_sample_gradients(*pictured(name))
    assert seen == ["_columns"] + ["_by_groups"] * 4


def test_a_picture_that_no_sample_changes() -> None:
    picture = noise(1, 9, 12, 12)

    def loss(params: Any, batch: Any) -> Tensor:
        return (F.conv2d(picture, params["w"]).sum((1, 2, 3)) * batch[0]).sin().mean()

    assert_as_looped(loss, {"w": noise(2, 9, 3, 3)}, (noise(4),))


@pytest.mark.parametrize("name", ["few, several", "many, strided", "large"])
def test_pictures_of_every_task(name: str) -> None:
    """T tasks with parameters in common, then M parameter sets with the samples in common."""
    loss, params, (x,) = pictured(name)
    tasks = torch.stack([x, x.flip(0) + 1])
    sets = {n: torch.stack([p, p.sin()]) for n, p in params.items()}
    for in_dims, values, inputs in (((None, 0), params, tasks), ((0, None), sets, x)):
        over = partial(torch.func.vmap, in_dims=in_dims)
        grads = over(lambda p, x: per_sample_gradients(loss, p, (x,)))(values, inputs)
        norms = over(lambda p, x: per_sample_norms(loss, p, (x,)))(values, inputs)
        clipped = over(lambda p, x: clipped_gradient(loss, p, (x,), max_norm=0.5))(values, inputs)
        for t in range(2):
            own = {n: p if p is params[n] else p[t] for n, p in values.items()}
            wanted = looped(loss, own, (inputs if inputs is x else inputs[t],))
            total = torch.stack(list(norms_of(wanted).values())).norm(dim=0)
            close(norms[t], total, atol=1e-9)
            for n, g in wanted.items():
                close(grads[n][t], g, msg=n)
                mean = torch.tensordot((0.5 / total).clamp(max=1), g, 1) / len(total)
                close(clipped.grads[n][t], mean, msg=n)


def test_the_check_of_unusual_parameters_and_samples() -> None:
    for name in ("scalar parameter", "empty parameter", "tied"):
        loss, params, batch = build(name)[1:] if name == "tied" else (*CASES[name][:2], (X,))
        report = check_per_sample(loss, params, batch)
        errors = [*report.vmap.values(), *report.layers.values(), *report.batch.values()]
        assert len(errors) == 3 * len(params)
        assert max(*errors, report.norms) < 1e-10
        assert report.ghosts == ghost_parameters(loss, params, batch)
    with pytest.raises(SettingError, match="samples=0: a whole number of at least 1"):
        check_per_sample(linear, {"w": W}, (X,), samples=0)
