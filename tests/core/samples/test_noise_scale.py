"""Gradient noise scale: the closed form for ½‖θ−x‖², unbiasedness, averages over steps.

Axes: N samples, M members, D draws.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import gradient_noise_scale, noise_average, per_sample_gradients
from metalearn.errors import SettingError
from tests.support.sample_oracles import noise

close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12, equal_nan=True)


def quadratic(params: Any, batch: Any) -> Tensor:
    """½‖θ−x‖²: sample i has gradient θ − x_i."""
    a, b = batch[0].split([2, 3], 1)
    return 0.5 * ((params["a"] - a).square().sum(1) + (params["b"] - b).square().sum(1)).mean()


def slow(rows: list[list[float]], group: int = 1) -> tuple[float, float]:
    """Unbiased tr Σ and |G|² of gradients as lists."""
    count, width = len(rows), len(rows[0])
    mean = [sum(row[j] for row in rows) / count for j in range(width)]
    spread = sum((row[j] - mean[j]) ** 2 for row in rows for j in range(width)) / (count - 1)
    return group * spread, sum(m * m for m in mean) - spread / count


def test_closed_form() -> None:
    x, theta = noise(7, 5), noise(5, seed=1)
    params = {"a": theta[:2], "b": theta[2:]}
    found = gradient_noise_scale(per_sample_gradients(quadratic, params, (x,)))
    covariance = torch.cov(x.T)
    trace, gap = covariance.trace(), (theta - x.mean(0)).square()
    close(found.noise, trace)
    close(found.signal, gap.sum() - trace / 7)
    close(found.scale, trace / (gap.sum() - trace / 7))
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 5))):
        own = covariance.diagonal()[part].sum()
        close(found.noise_by_leaf[name], own)
        close(found.signal_by_leaf[name], gap[part].sum() - own / 7)
        ratio = own / found.signal_by_leaf[name]
        close(found.scale_by_leaf[name], ratio if ratio > 0 else torch.full_like(ratio, math.inf))


@pytest.mark.parametrize("group", [1, 4])
def test_unbiased(group: int) -> None:
    """Over D draws, the means of both lie within 4 standard errors of tr Σ and |G|²."""
    draws, count, deviations = 4000, 3, torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    truth = torch.tensor([0.3, -0.4, 0.2], dtype=torch.float64)
    samples = truth + deviations * noise(draws, count, group, 3, seed=2)
    found = torch.func.vmap(
        lambda g: tuple(gradient_noise_scale([g], group_size=group)[1:3])
    )(samples.mean(2))  # fmt: skip
    for values, wanted in zip(found, (deviations.square().sum(), truth.square().sum())):
        error = values.std() / math.sqrt(draws)
        assert abs(values.mean() - wanted) < 4 * error
        assert error < 0.2 * wanted * group


@pytest.mark.parametrize("group", [1, 3])
def test_against_lists(group: int) -> None:
    grads = {"w": noise(6, 2, 3), "s": noise(6, seed=1)}
    found = gradient_noise_scale(grads, group_size=group)
    rows = torch.cat([grads["w"].flatten(1), grads["s"][:, None]], 1).tolist()
    noise_, signal = slow(rows, group)
    close(found.noise, torch.tensor(noise_, dtype=torch.float64))
    close(found.signal, torch.tensor(signal, dtype=torch.float64))
    ratio = noise_ / signal if signal > 0 else math.inf
    close(found.scale, torch.tensor(ratio, dtype=torch.float64))
    parts = slow(grads["s"][:, None].tolist(), group)
    close(found.noise_by_leaf["s"], torch.tensor(parts[0], dtype=torch.float64))
    close(found.signal_by_leaf["s"], torch.tensor(parts[1], dtype=torch.float64))


def test_limits() -> None:
    """Equal gradients have no noise; gradients about zero no signal; zeros have neither."""
    equal = gradient_noise_scale({"w": noise(3).expand(4, 3)})
    close(equal.noise, torch.zeros_like(equal.noise))
    close(equal.scale, torch.zeros_like(equal.scale))
    g = noise(5, 3)
    opposed = gradient_noise_scale({"w": torch.cat([g, -g])})
    assert opposed.signal < 0 and opposed.scale == math.inf
    zeros = gradient_noise_scale({"w": torch.zeros(4, 3)})
    assert zeros.scale == math.inf and zeros.noise == 0 and zeros.signal == 0


def test_one_gradient_says_nothing() -> None:
    found = gradient_noise_scale({"w": noise(1, 3), "b": noise(1)})
    for value in found[:3]:
        assert torch.isnan(value)
    for tree in (found.noise_by_leaf, found.signal_by_leaf, found.scale_by_leaf):
        assert all(torch.isnan(value) for value in tree.values())


def test_inside_an_outer_vmap() -> None:
    grads = {"w": noise(3, 5, 2, 2), "b": noise(3, 5, seed=1)}
    found = torch.func.vmap(lambda g: tuple(gradient_noise_scale(g)))(grads)
    for m in range(3):
        wanted = gradient_noise_scale({n: g[m] for n, g in grads.items()})
        for values, value in zip(found[:3], wanted[:3]):
            close(values[m], value)
        for name in grads:
            close(found[3][name][m], wanted.noise_by_leaf[name])
            close(found[4][name][m], wanted.signal_by_leaf[name])


@pytest.mark.parametrize("decay", [None, 0.0, 0.9])
def test_averages_take_numerator_and_denominator_apart(decay: float | None) -> None:
    """A step with one gradient, which says nothing, is left out."""
    params = {"w": noise(2, 2), "b": noise(1)[0]}
    sizes = (4, 3, 1, 6, 1, 2)
    steps = [{"w": noise(n, 2, 2, seed=n), "b": noise(n, seed=10 + n)} for n in sizes]
    average = noise_average(decay)
    state = average.init(params)
    assert all(torch.isnan(value) for value in average.value(state)[:3])
    kept: list[tuple[float, float]] = []
    for grads in steps:
        state = average.update(state, gradient_noise_scale(grads))
        if len(grads["b"]) > 1:
            kept.append(slow(torch.cat([grads["w"].flatten(1), grads["b"][:, None]], 1).tolist()))
        weights = [(decay or 0.0) ** (len(kept) - 1 - i) for i in range(len(kept))]
        weights = [1.0] * len(kept) if decay is None else weights
        top, bottom = (
            sum(w * pair[k] for w, pair in zip(weights, kept)) / sum(weights) for k in range(2)
        )
        found = average.value(state)
        wanted = [top / bottom if bottom > 0 else math.inf, top, bottom]
        close(torch.stack(found[:3]), torch.tensor(wanted, dtype=torch.float64))
        close(torch.stack(list(found.noise_by_leaf.values())).sum(), found.noise)
        close(torch.stack(list(found.signal_by_leaf.values())).sum(), found.signal)


def test_averages_of_every_member() -> None:
    """Members inside a vmap, one of which has a NaN step."""
    average = noise_average(0.5)
    grads = [noise(2, 4, 3, seed=seed) for seed in range(3)]
    grads[1][0] = math.nan

    def run(*steps: Tensor) -> Tensor:
        state = average.init({"w": steps[0][0]})
        for step in steps:
            state = average.update(state, gradient_noise_scale({"w": step}))
        return torch.stack(average.value(state)[:3])

    found = torch.func.vmap(run)(*grads)
    close(found[1], run(*(g[1] for g in grads)))
    close(found[0], run(grads[0][0], grads[2][0]))


def test_bad_inputs_are_one_sentence() -> None:
    with pytest.raises(SettingError, match="group_size=0: a whole number of at least 1"):
        gradient_noise_scale({"w": noise(3, 2)}, group_size=0)
    for grads in (
        {"w": noise(3, 2), "b": noise(4)}, {"w": noise(3)[0]}, {"w": noise(0, 2)},
        {"w": noise(3, 2), "b": noise(3)[0]},
    ):  # fmt: skip
        with pytest.raises(SettingError, match=r"grads=.*the same leading axis"):
            gradient_noise_scale(grads)
    with pytest.raises(SettingError, match="floating-point"):
        gradient_noise_scale({"w": torch.ones(3, 2, dtype=torch.long)})
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(SettingError, match=r"decay=.*a number from 0 to below 1, or None"):
            noise_average(decay)
