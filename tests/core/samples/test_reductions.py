"""Reductions of per-sample gradients, against all gradients at once.

Axes: N samples, k numbers of a sketch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metalearn.core import (
    gradient_mean,
    gradient_norms,
    gradient_sketches,
    gradient_variance,
    norm_quantiles,
    reduce_per_sample,
)
from metalearn.errors import SettingError
from tests.support.oracles import generator
from tests.support.sample_oracles import build, looped, noise

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
LEVELS = (0.0, 0.1, 0.5, 0.75, 1.0)
CHUNKS = [1, 2, 3, 5, 100, None, "auto"]


def inner(params: Any, batch: Any) -> Tensor:
    """Sample i has gradient x_i."""
    return (batch[0] * params["w"]).sum(1).mean()


def rows_of(grads: dict[str, Tensor]) -> Tensor:
    """[N, P]."""
    return torch.cat([g.reshape(len(g), -1) for g in grads.values()], 1)


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("name", ["sequence", "tied"])
@pytest.mark.parametrize("method", ["layers", "vmap"])
def test_reductions_are_the_dense_ones(name: str, chunk_size: Any, method: Any) -> None:
    _, loss, params, batch = build(name)
    wanted = looped(loss, params, batch)
    reductions = {
        "mean": gradient_mean(),
        "variance": gradient_variance(),
        "norms": gradient_norms(),
        "quantiles": norm_quantiles(LEVELS),
        "sketches": gradient_sketches(8, generator=generator(4)),
    }
    memory = "50MB" if chunk_size == "auto" else None
    found = reduce_per_sample(
        loss, params, batch, reductions, chunk_size=chunk_size, memory=memory, method=method
    )
    assert list(found) == list(reductions)
    for n, g in wanted.items():
        close(found["mean"][n], g.mean(0), msg=n)
        close(found["variance"][n], g.var(0, correction=1), msg=n)
    norms = rows_of(wanted).norm(dim=1)
    close(found["norms"], norms)
    close(found["quantiles"], torch.from_numpy(np.quantile(norms.numpy(), LEVELS)))
    whole = {"s": gradient_sketches(8, generator=generator(4))}
    again = reduce_per_sample(loss, params, batch, whole, chunk_size=None, method="vmap")
    close(found["sketches"], again["s"])


def test_variance_keeps_its_digits_far_from_zero() -> None:
    """Gradients 10⁸ + small: sums of squares would lose all digits."""
    x = 1e8 + noise(50, 3)
    params = {"w": noise(3)}
    for size in (1, 7, None):
        found = reduce_per_sample(
            inner, params, (x,), {"v": gradient_variance(), "m": gradient_mean()}, chunk_size=size
        )
        torch.testing.assert_close(found["v"]["w"], x.var(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(found["m"]["w"], x.mean(0), rtol=1e-14, atol=0)


def test_one_sample_has_no_variance() -> None:
    found = reduce_per_sample(
        inner, {"w": noise(3)}, (noise(1, 3),), {"v": gradient_variance(), "n": gradient_norms()}
    )
    assert torch.isnan(found["v"]["w"]).all()
    close(found["n"], noise(1, 3).norm(dim=1))


def sketched(x: Tensor, size: int, seed: int) -> Tensor:
    params = {"w": torch.zeros(x.shape[1], dtype=x.dtype)}
    made = {"s": gradient_sketches(size, generator=generator(seed))}
    return reduce_per_sample(inner, params, (x,), made, chunk_size=2)["s"]


def test_sketches_are_linear_and_reproducible() -> None:
    """S as a matrix, from unit vectors: one ±1 in each column; the sketch is S·g."""
    matrix = sketched(torch.eye(12, dtype=torch.float64), 5, seed=3).T
    assert matrix.shape == (5, 12)
    close(matrix.abs().sum(0), torch.ones(12, dtype=torch.float64))
    assert ((matrix == 0) | (matrix.abs() == 1)).all()
    x = noise(6, 12)
    close(sketched(x, 5, seed=3), x @ matrix.T)
    assert not torch.equal(sketched(x, 5, seed=4), sketched(x, 5, seed=3))


def test_sketches_keep_products_in_expectation() -> None:
    """Over draws of S: the mean within 4 standard errors, the deviation below its bound."""
    x, size, draws = noise(3, 20), 8, 600
    truth = x @ x.T
    norms = x.norm(dim=1)
    bound = math.sqrt(2 / size) * norms[:, None] * norms
    made = torch.stack([sketched(x, size, seed=100 + d) for d in range(draws)])
    products = made @ made.mT
    error = products.std(0) / math.sqrt(draws)
    assert ((products.mean(0) - truth).abs() < 4 * error).all()
    assert (products.std(0) < 1.15 * bound).all()
    assert (error < 0.03 * norms[:, None] * norms).all()


def test_sketches_span_all_parameters() -> None:
    """One S over all leaves, scalar ones too: products of whole gradients, exact when k is wide."""
    _, loss, params, batch = build("mlp")
    wanted = rows_of(looped(loss, params, batch))
    total = torch.zeros(len(batch[0]), dtype=torch.float64)
    for seed in range(200):
        made = {"s": gradient_sketches(64, generator=generator(seed))}
        total += reduce_per_sample(loss, params, batch, made, chunk_size=None)["s"].square().sum(1)
    squares = wanted.square().sum(1)
    spread = math.sqrt(2 / 64 / 200) * squares
    assert ((total / 200 - squares).abs() < 4 * spread).all()


def test_inside_an_outer_vmap() -> None:
    _, loss, params, batch = build("sequence")
    stacked = {n: torch.stack([p, p.sin()]) for n, p in params.items()}

    def member(params: Any) -> Any:
        reductions = {
            "mean": gradient_mean(), "variance": gradient_variance(), "norms": gradient_norms(),
            "quantiles": norm_quantiles((0.25, 0.75)),
        }  # fmt: skip
        return reduce_per_sample(loss, params, batch, reductions, chunk_size=2)

    found = torch.func.vmap(member)(stacked)
    for m in range(2):
        wanted = looped(loss, {n: p[m] for n, p in stacked.items()}, batch)
        norms = rows_of(wanted).norm(dim=1)
        close(found["norms"][m], norms)
        close(found["quantiles"][m], norms.quantile(norms.new_tensor([0.25, 0.75])))
        for n, g in wanted.items():
            close(found["mean"][n][m], g.mean(0))
            close(found["variance"][n][m], g.var(0))


def test_quantiles_of_norms_that_are_not_finite() -> None:
    x = noise(5, 3)
    x[2, 1] = math.nan
    found = reduce_per_sample(inner, {"w": noise(3)}, (x,), {"q": norm_quantiles((0.0, 0.5))})
    assert torch.isnan(found["q"]).all()


def test_memory_does_not_hold_all_gradients() -> None:
    """A budget that has room for a few gradients of 8 kB each is kept."""
    seen: list[int] = []

    def watched(state: Any, grads: Any) -> Any:
        seen.append(len(grads["w"]))
        return state

    x = noise(64, 1000)
    reduction = gradient_norms()._replace(init=lambda _: None, update=watched, finish=len_of)
    params = {"w": noise(1000)}
    reduce_per_sample(inner, params, (x,), {"n": reduction}, memory="200KB")
    assert sum(seen) == 64 and 1 <= max(seen) <= 200_000 // 8000
    assert len(seen) > 1


def len_of(state: Any) -> int:
    return 0


@pytest.mark.parametrize(
    ("q", "accepted"),
    [
        ((), "numbers from 0 to 1 are"),
        ((1.1,), "numbers from 0 to 1 are"),
        ((0.5, -0.1), "numbers from 0 to 1 are"),
        ((math.nan,), "a list of numbers is"),
    ],
)
def test_bad_quantiles_are_one_sentence(q: Any, accepted: str) -> None:
    with pytest.raises(SettingError, match=rf"^q=.*: {accepted} needed$"):
        norm_quantiles(q)


def test_bad_settings_are_one_sentence() -> None:
    with pytest.raises(SettingError, match="size=0: a whole number of at least 1"):
        gradient_sketches(0, generator=generator(0))
    _, loss, params, (x, y) = build("mlp")
    run = partial(reduce_per_sample, loss, params)
    with pytest.raises(SettingError, match="chunk_size=0"):
        run((x, y), {"n": gradient_norms()}, chunk_size=0)
    with pytest.raises(SettingError, match="memory='1GB'"):
        run((x, y), {"n": gradient_norms()}, chunk_size=2, memory="1GB")
    with pytest.raises(SettingError, match="method='one'"):
        run((x, y), {"n": gradient_norms()}, method="one")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="the same number of samples"):
        run((x, y[:2]), {"n": gradient_norms()})
