"""Clipping sample by sample, against closed forms and a loop.

Axes: N samples, M members.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import clipped_gradient, per_sample_norms
from metalearn.errors import SettingError
from tests.support.sample_oracles import PROBLEMS, build, looped, noise

close = partial(torch.testing.assert_close, rtol=0, atol=1e-11)
X = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.3, 0.4], [0.0, 1.0]], dtype=torch.float64)
THETA = {"w": torch.tensor([0.5, -2.0], dtype=torch.float64)}


def inner(params: Any, batch: Any) -> Tensor:
    """Sample i has gradient x_i, wherever the parameters are."""
    return (batch[0] * params["w"]).sum(1).mean()


def clipped_by_loop(
    loss: Any, params: dict[str, Tensor], batch: Any, max_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    grads = looped(loss, params, batch)
    count = len(batch[0])
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    norms = []
    for i in range(count):
        norm = math.sqrt(sum(float(g[i].square().sum()) for g in grads.values()))
        factor = max_norm / norm if norm > max_norm else 1.0
        total = {n: total[n] + factor * grads[n][i] / count for n in total}
        norms.append(norm)
    return total, torch.tensor(norms, dtype=torch.float64)


@pytest.mark.parametrize("method", ["layers", "vmap"])
@pytest.mark.parametrize("max_norm", [1.0, torch.tensor(1.0, dtype=torch.float64)])
def test_sample_i_has_gradient_i(max_norm: Any, method: Any) -> None:
    """Norms 5, 0, 0.5 and 1: one is clipped, the one on the bound is not, zero stays zero."""
    found = clipped_gradient(inner, THETA, (X,), max_norm=max_norm, method=method)
    close(found.norms, torch.tensor([5, 0, 0.5, 1], dtype=torch.float64))
    close(found.grads["w"], torch.tensor([0.6 + 0.3, 0.8 + 0.4 + 1.0], dtype=torch.float64) / 4)
    assert float(found.clipped_fraction) == 0.25


def test_zeros_alone() -> None:
    found = clipped_gradient(inner, THETA, (0 * X,), max_norm=0.1)
    assert not found.grads["w"].any() and not found.norms.any()
    assert float(found.clipped_fraction) == 0


@pytest.mark.parametrize("bound", [math.inf, 5.0, 1e9])
def test_a_bound_that_nothing_exceeds_gives_the_gradient_of_the_batch(bound: float) -> None:
    found = clipped_gradient(inner, THETA, (X,), max_norm=bound)
    close(found.grads["w"], X.mean(0))
    assert float(found.clipped_fraction) == 0


def test_a_small_bound_gives_the_mean_of_directions() -> None:
    found = clipped_gradient(inner, THETA, (X,), max_norm=1e-3)
    directions = X[[0, 2, 3]] / X[[0, 2, 3]].norm(dim=1, keepdim=True)
    close(found.grads["w"] / 1e-3, directions.sum(0) / 4)
    assert float(found.clipped_fraction) == 0.75


@pytest.mark.parametrize("name", PROBLEMS)
def test_clipping_is_that_of_a_loop(name: str) -> None:
    module, loss, params, batch = build(name)
    middle = float(clipped_by_loop(loss, params, batch, 1.0)[1].median())
    wanted, norms = clipped_by_loop(loss, params, batch, middle)
    for size in (None, 1, 2, "auto"):
        memory = "20MB" if size == "auto" else None
        found = clipped_gradient(
            loss,
            params,
            batch,
            max_norm=middle,
            chunk_size=size,
            memory=memory,  # type: ignore[arg-type]
        )
        close(found.norms, norms, atol=1e-9)
        assert list(found.grads) == list(params)
        for n in params:
            close(found.grads[n], wanted[n], atol=1e-9, msg=n)
        # the sample in the middle is at the bound up to rounding
        assert 0 < float(found.clipped_fraction) < 0.8
    whole = clipped_gradient(loss, params, batch, max_norm=math.inf)
    torch.autograd.backward((module(batch[0]) - batch[1]).square().sum(1).mean())
    for n, p in module.named_parameters():
        close(whole.grads[n], torch.zeros_like(p) if p.grad is None else p.grad, msg=n)


def test_members_with_bounds_of_their_own() -> None:
    _, loss, params, batch = build("norms")
    stacked = {n: torch.stack([p, 0.5 * p, p.sin()]) for n, p in params.items()}
    bounds = torch.tensor([0.5, 3.0, 1e9], dtype=torch.float64)

    def member(params: Any, bound: Tensor) -> Any:
        return tuple(clipped_gradient(loss, params, batch, max_norm=bound, chunk_size=3))

    grads, norms, fractions, _ = torch.func.vmap(member)(stacked, bounds)
    for m, bound in enumerate(bounds.tolist()):
        own = {n: p[m] for n, p in stacked.items()}
        wanted, wanted_norms = clipped_by_loop(loss, own, batch, bound)
        close(norms[m], wanted_norms, atol=1e-9)
        close(fractions[m], (wanted_norms > bound).double().mean())
        for n in params:
            close(grads[n][m], wanted[n], atol=1e-10, msg=n)


def test_the_bound_has_a_derivative() -> None:
    """d/dC of (1/N) Σ C·x_i/‖x_i‖ over clipped samples; zero norms bring no NaN."""

    def first(bound: Tensor) -> Tensor:
        return clipped_gradient(inner, THETA, (X,), max_norm=bound).grads["w"][0]

    slope = torch.func.grad(first)(torch.tensor(0.7, dtype=torch.float64))
    close(slope, torch.tensor(0.6 / 4, dtype=torch.float64))


def test_zero_norms_have_a_finite_derivative() -> None:
    def residual(params: Any, batch: Any) -> Tensor:
        return 0.5 * (batch[0] @ params["w"]).square().mean()

    def through(params: Any) -> Tensor:
        return clipped_gradient(residual, params, (X,), max_norm=0.5).grads["w"].square().sum()

    def alone(params: Any) -> Tensor:
        return (
            clipped_gradient(residual, params, (X[[0, 2, 3]],), max_norm=0.5)
            .grads["w"]
            .square()
            .sum()
            * (3 / 4) ** 2
        )

    close(torch.func.grad(through)(THETA)["w"], torch.func.grad(alone)(THETA)["w"])


def test_parameters_may_be_any_tree() -> None:
    def loss(params: Any, batch: Any) -> Tensor:
        w, (a, b) = params
        return (torch.nn.functional.linear(batch["x"], w, a).square().sum(1) + b).mean()

    params = (noise(2, 3), [noise(2, seed=1), noise(1, seed=2)[0]])
    batch = {"x": noise(5, 3, seed=3)}
    norms: Any = per_sample_norms(loss, params, batch, by_leaf=True)
    assert isinstance(norms, tuple) and isinstance(norms[1], list)
    z = 2 * (batch["x"] @ params[0].T + params[1][0])  # type: ignore[operator]
    close(norms[0], z.norm(dim=1) * batch["x"].norm(dim=1))
    close(norms[1][0], z.norm(dim=1))
    close(norms[1][1], torch.ones(5, dtype=torch.float64))
    found = clipped_gradient(loss, params, batch, max_norm=math.inf)
    close(found.grads[0], z.T @ batch["x"] / 5)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan])
def test_bad_bounds_are_one_sentence(bad: float) -> None:
    with pytest.raises(SettingError, match=r"max_norm=.*a number above 0 is needed"):
        clipped_gradient(inner, THETA, (X,), max_norm=bad)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chunk_size": 0}, "chunk_size=0: a whole number of at least 1"),
        ({"chunk_size": 2.5}, "chunk_size=2.5"),
        ({"memory": "1GB"}, "memory='1GB': it goes with chunk_size=\"auto\" alone"),
        ({"chunk_size": "auto", "memory": 1}, "memory=1: one sample takes [0-9]+ bytes"),
        ({"method": "ghost"}, "method='ghost': one of layers, vmap, loop is needed"),
    ],
)
def test_bad_settings_are_one_sentence(change: dict[str, Any], sentence: str) -> None:
    for call in (per_sample_norms, partial(clipped_gradient, max_norm=1.0)):
        with pytest.raises(SettingError, match=sentence):
            call(inner, THETA, (X,), **change)


def test_bad_batches_and_losses_are_one_sentence() -> None:
    for call in (per_sample_norms, partial(clipped_gradient, max_norm=1.0)):
        with pytest.raises(SettingError, match=r"batch=.*the same number of samples"):
            call(inner, THETA, (X, X[:2]))
        for empty in ((X[:0],), {}):
            with pytest.raises(SettingError, match=r"batch=.*at least 1"):
                call(inner, THETA, empty)
        with pytest.raises(SettingError, match=r"batch\[1\]='a scalar'"):
            call(inner, THETA, (X, X[0, 0]))
        with pytest.raises(SettingError, match=r"batch\[1\]='str'"):
            call(inner, THETA, (X, "labels"))
        with pytest.raises(SettingError, match="a scalar is needed"):
            call(lambda p, b: b[0] @ p["w"], THETA, (X,))
        with pytest.raises(SettingError, match="floating-point"):
            call(inner, {"w": torch.ones(2, dtype=torch.long)}, (X,))


def _linear(params: Any, batch: Any) -> Tensor:
    """Σ_s ⟨l_s, W·r_s⟩ of a sample, whose gradient is Σ_s l_s·r_sᵀ."""
    left, right = batch
    return (torch.nn.functional.linear(right, params["w"]) * left).sum((1, 2)).mean()


def _rows_of_table(params: Any, batch: Any) -> Tensor:
    left, index = batch
    return (torch.nn.functional.embedding(index, params["w"]) * left).sum((1, 2)).mean()


def _used_twice(params: Any, batch: Any) -> Tensor:
    """⟨l_1, W·r_1⟩ and, the other way round, ⟨r_2, Wᵀ·l_2⟩, which nearly cancel."""
    left, right = batch
    one = (torch.nn.functional.linear(right, params["w"]) * left).sum((1, 2))
    shifted = left * (1 + 1e-6 * torch.arange(left.shape[2]).to(left))
    other = (torch.nn.functional.linear(shifted, params["w"].mT) * right).sum((1, 2))
    return (one - other).mean()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("loss", [_linear, _rows_of_table, _used_twice])
def test_no_sample_is_longer_than_the_limit_where_its_terms_cancel(loss: Any, size: float) -> None:
    """Of which rounding leaves less than nothing: squares of norms come out as 0, or below."""
    left, right, rest = (noise(24, count, 64, seed=count) for count in (4, 5, 8))
    right = right[:, :4] * size
    if loss is _linear:  # pairs of positions, all but opposite
        batch: Any = torch.cat([left, left], 1), torch.cat([right, -right], 1) + rest / 2
    elif loss is _rows_of_table:
        rows = torch.cat([left, -left], 1) * size + rest
        batch = rows, torch.arange(4).repeat(24, 2)
    else:
        batch = left, right
    batch = tuple(part.float() if part.is_floating_point() else part for part in batch)
    params = {"w": noise(64, 64).float()}
    for i in range(24):
        one = tuple(part[i : i + 1] for part in batch)
        found = clipped_gradient(loss, params, one, max_norm=0.01).grads["w"]
        assert float(found.double().norm()) <= 0.01 * (1 + 1e-4)
