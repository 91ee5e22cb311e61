"""Noise scale of gradients: closed forms, unbiasedness, averages over steps.

Axes: N gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metalearn.core import (
    clipped_gradient,
    gradient_noise_scale,
    noise_average,
    per_sample_gradients,
    per_sample_norms,
)
from metalearn.errors import SettingError
from tests.core.networks import noise
from tests.oracles import generator

close = torch.testing.assert_close


def pull(theta: Tensor, x: Tensor) -> Tensor:
    """½‖θ − x‖², whose gradients are θ − x_i."""
    return 0.5 * (theta - x).square().sum(-1).mean()


def test_noise_scale_in_closed_form() -> None:
    theta, x = noise(3), noise(8, 3) * 2
    grads = per_sample_gradients(pull, theta, x)
    found = gradient_noise_scale({"theta": grads})
    noises = x.var(0).sum()
    signal = (theta - x.mean(0)).square().sum() - noises / 8
    close(found.noise, noises)
    close(found.signal, signal)
    close(found.scale, noises / signal)
    close(found.scale_by_leaf["theta"], noises / signal)
    groups = gradient_noise_scale(grads.view(4, 2, 3).mean(1), group_size=2)
    pairs = x.view(4, 2, 3).mean(1)
    close(groups.noise, 2 * pairs.var(0).sum())
    close(groups.signal, (theta - x.mean(0)).square().sum() - pairs.var(0).sum() / 4)


def test_noise_and_signal_are_unbiased() -> None:
    """Over many batches of 4: tr Σ = 3·4 and |G|² = 3."""
    x = 2 * torch.randn(4000, 4, 3, generator=generator(0), dtype=torch.float64)
    found = vmap(gradient_noise_scale)(1 - x)
    assert abs(float(found.noise.mean()) / 12 - 1) < 0.03
    assert abs(float(found.signal.mean()) / 3 - 1) < 0.1
    average = noise_average()
    state = average.init(torch.ones(3, dtype=torch.float64))
    for step in range(200):
        state = average.update(state, gradient_noise_scale(1 - x[step]))
    close(average.value(state).scale, found.noise[:200].mean() / found.signal[:200].mean())


def test_noise_averages_leave_out_single_gradients_and_correct_their_start() -> None:
    single, pair = gradient_noise_scale(noise(1, 3)), gradient_noise_scale(noise(2, 3) + 5)
    assert all(torch.isnan(value) for value in single[:3])
    for decay in (None, 0.9):
        average = noise_average(decay)
        state = average.init(noise(3))
        assert torch.isnan(average.value(state).scale)
        state = average.update(average.update(state, single), pair)
        close(average.value(state).scale, pair.scale)
    lost = gradient_noise_scale(torch.tensor([[1.0], [-1.0]]))
    assert float(lost.signal) < 0 and float(lost.scale) == float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clipped_gradient(pull, noise(2), noise(3, 2), max_norm=0), "max_norm=0: a number"),
        (lambda: per_sample_norms(pull, noise(2), {}), r"batch=\{\}: the same number of samples"),
        (lambda: gradient_noise_scale([noise(2), noise(3)]), "leaves with the same leading axis"),
        (lambda: gradient_noise_scale(noise(2), group_size=0), "group_size=0: a whole number"),
        (lambda: noise_average(1.0), "decay=1.0: a number from 0 to below 1"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
