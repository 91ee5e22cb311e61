"""Strategies of correlated noise: which bands make noise cancel in sums over steps.

Axes: n steps, b bands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from metalearn.core.tree import check_floating
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["banded_strategy", "checked_bands", "prefix_error"]

_LONGEST = 2**16  # steps that a strategy is optimised for: longer series hardly have another one
_ROUNDS = 500
_ENOUGH = 1e-12  # of the logarithm of the squared error, in one round
_SHORTEST = 1e-12  # step of a line search


@checked
def banded_strategy(steps: int, bands: int) -> Tensor:
    """The b bands c of a Toeplitz matrix S whose noise spoils sums over steps least.

    S is lower triangular, S[t, s] = c[t − s] for 0 ≤ t − s < b, and ‖c‖ = 1: no column is longer.
    Gradients g_t get the noise σ·C·(S⁻¹z)_t, so that g_1 + … + g_t, the way from the first weights
    to those after step t of plain gradient descent with a constant rate, have the error
    `prefix_error`, which c makes least. It is found by BFGS in float64, from the first b
    coefficients of (1 − x)^(−1/2), whose matrix S = A^(1/2) is near the best for b = n (A sums over
    steps), and never is worse than they. The same arguments give the same numbers. Privacy does not
    depend on how good they are.

    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A Unified Approach to Private
    Training", NeurIPS 2023; McKenna, "Scaling up the Banded Matrix Factorization Mechanism for
    Differentially Private ML", ICLR 2025 (Toeplitz matrices); Kalinin and Lampert, "Banded Square
    Root Matrix Factorization for Differentially Private Model Training", NeurIPS 2024 (the start).

    Args:
        steps: n that are to come; beyond 65,536 the strategy is that of so many.
        bands: b, in 1..n.

    Returns:
        c, float64 ``[b]``.

    Raises:
        SettingError: a number out of range.
    """
    check_whole("steps", steps, 1)
    check_whole("bands", bands, 1, steps)
    return _optimised(min(steps, max(_LONGEST, bands)), bands).clone()


@checked
def prefix_error(strategy: Tensor, steps: int) -> float:
    """Root of the mean, over n steps, of the variance of summed noise, for σ·C = 1.

    For S of c and sums over steps A, ‖c‖·‖A·S⁻¹‖_F/√n: it does not change with c's scale, as noise
    that is enough for ‖c‖ grows with it. One band gives √((n + 1)/2), as independent noise has it.

    Args:
        strategy: c, ``[b]``, the first number above 0.
        steps: n, at least b.

    Raises:
        SettingError: no such strategy or number of steps.
    """
    check_whole("steps", steps, 1)
    c = checked_bands(strategy, steps)
    return math.sqrt(float(c.square().sum() * _squared(_inverse(c, steps).cumsum(0))))


def checked_bands(strategy: Tensor, most: int | None = None) -> Tensor:
    """A strategy in float64 on the processor, ``[b]``.

    Raises:
        SettingError: it is none, or has more than ``most`` bands.
    """
    check_floating(strategy, "strategy")
    c = strategy.detach().cpu().double()
    if c.ndim != 1 or not 1 <= len(c) <= (most or len(c)):
        accepted = f"numbers [b] with b in 1..{most or 'n'} are needed"
        raise SettingError("strategy", list(c.shape), accepted)
    if not bool(c.isfinite().all()) or not c[0] > 0:
        accepted = "finite numbers are needed, the first of them above 0"
        raise SettingError("strategy", c[:3].tolist(), accepted)
    return c


@lru_cache(maxsize=64)
def _optimised(steps: int, bands: int) -> Tensor:
    """Of the scale, which makes no difference, c[0] = 1 takes care while the others are found."""
    k = torch.arange(1, bands, dtype=torch.float64)
    root = torch.cat([torch.ones(1, dtype=torch.float64), ((2 * k - 1) / (2 * k)).cumprod(0)])
    found = _minimised(lambda rest: _log_error(rest, steps), root[1:]) if bands > 1 else root[1:]
    c: Tensor = torch.cat([root[:1], found])
    return c.div(c.norm())


def _log_error(rest: Tensor, steps: int) -> tuple[float, Tensor]:
    """log(‖c‖²·Σ_k w_k·d_k²), d the coefficients of 1/((1 − x)·c(x)), and its gradient.

    ∂d/∂c_j is −d/c moved by j, so that the gradient is a correlation of w·d with d/c.
    """
    c = torch.cat([rest.new_ones(1), rest])
    inverse = _inverse(c, steps)
    d = inverse.cumsum(0)
    squared, norm = _squared(d), c.square().sum()
    weighted = d * _weights(steps) / squared
    size = _size(2 * steps)
    moved = torch.fft.rfft(_product(d, inverse)[:steps], size).conj()
    slope = -2 * torch.fft.irfft(torch.fft.rfft(weighted, size) * moved, size)[: len(c)]
    return float(squared.log() + norm.log()), (slope + 2 * c / norm)[1:]


def _squared(d: Tensor) -> Tensor:
    """The mean over n steps of Σ_{k ≤ t} d_k²."""
    total: Tensor = (_weights(len(d)) * d.square()).sum()
    return total


def _weights(steps: int) -> Tensor:
    return 1 - torch.arange(steps, dtype=torch.float64) / steps


def _inverse(c: Tensor, steps: int) -> Tensor:
    """``[n]`` coefficients of 1/c(x), by Newton's rule, which doubles how many are right."""
    found, c = 1 / c[:1], torch.nn.functional.pad(c[:steps], (0, max(0, steps - len(c))))
    while len(found) < steps:
        size = min(2 * len(found), steps)
        error = -_product(c[:size], found)[:size]
        error[0] += 1
        longer = _product(error, found)[:size]
        longer[: len(found)] += found
        found = longer
    return found


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Coefficients of the product of two polynomials."""
    count = len(one) + len(other) - 1
    size = _size(count)
    found: Tensor = torch.fft.irfft(torch.fft.rfft(one, size) * torch.fft.rfft(other, size), size)
    return found[:count]


def _size(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _minimised(function: Callable[[Tensor], tuple[float, Tensor]], start: Tensor) -> Tensor:
    """By BFGS, halving steps until they descend: never above the start."""
    at, (value, slope) = start, function(start)
    curvature = torch.eye(len(start), dtype=start.dtype)
    for _ in range(_ROUNDS):
        way = -curvature @ slope
        descent, length = float(way @ slope), 1.0
        if descent >= 0:
            break
        new, new_slope = function(at + way)
        while not new <= value + 1e-4 * length * descent:
            length /= 2
            if length < _SHORTEST:
                return at
            new, new_slope = function(at + length * way)
        change, bent = length * way, new_slope - slope
        gained = value - new
        at, value, slope = at + change, new, new_slope
        if gained < _ENOUGH:
            break
        product = float(change @ bent)
        if product > 0:
            moved = curvature @ bent
            outer = torch.outer(moved, change)
            curvature += (1 + float(bent @ moved) / product) / product * torch.outer(change, change)
            curvature -= (outer + outer.T) / product
    return at
