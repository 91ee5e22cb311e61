"""Noisy sine waves: a small regression whose noise is part of what is to be learnt.

Axes: N samples, D targets of a sample.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from metalearn.core.checks import check_number
from metalearn.core.memory import check_memory
from metalearn.data.division import check_fractions, shuffled_splits
from metalearn.data.regression import RegressionData
from metalearn.errors import check_whole
from metalearn.random_streams import AddressedStream
from metalearn.signatures import checked

__all__ = ["waves_data"]


@checked
def waves_data(
    *,
    samples: int = 1000,
    noise: float = 0.2,
    targets: int = 1,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> RegressionData:
    """y_d = sin(x + πd/D) + σ(x)·z with d in 0..D−1, x uniform in [−5, 5], z standard normal.

    The noise grows from left to right: σ(x) = ``noise``·e^(x/5), from 0.37 to 2.7 times ``noise``.

    Args:
        samples: N, at least 3.
        noise: σ(0), above 0.
        targets: D, waves of as many phases.
        validation_fraction: share of the samples for validation, at least one of them.
        test_fraction: share of the samples for testing, at least one of them.
        seed: of samples and division; the same data on any machine.

    Returns:
        Inputs ``[N, 1]`` and targets ``[N, D]``, float32.

    Raises:
        SettingError: a setting that cannot work.
    """
    check_whole("samples", samples, 3)
    check_whole("targets", targets, 1)
    check_number("noise", noise, above=0, accepted="a finite number above 0 is needed")
    check_fractions(validation_fraction, test_fraction)
    check_memory("samples", samples, 8 * 4 * samples * targets)
    x = 10 * AddressedStream(seed, "samples", 0).uniform(samples) - 5
    phases = math.pi * np.arange(targets) / targets
    spread = noise * np.exp(x / 5)[:, None]
    y = np.sin(x[:, None] + phases) + spread * _normal(seed, samples, targets)
    shares = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    splits = shuffled_splits(samples, **shares, seed=seed)
    inputs, wanted = (torch.from_numpy(values).float() for values in (x[:, None], y))
    return RegressionData(inputs, wanted, splits)


def _normal(seed: int, samples: int, targets: int) -> np.ndarray:
    """Standard normal draws ``[N, D]`` (Box and Muller, 1958)."""
    drawn = AddressedStream(seed, "samples", 1).uniform(2 * samples * targets)
    radius, angle = drawn.reshape(2, samples, targets)
    found: np.ndarray = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)
    return found
