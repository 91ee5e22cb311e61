"""Temperature scaling of a model, of each member, or of an ensemble.

Axes: M members, N samples, C classes. Guo et al., ICML 2017 (arXiv 1706.04599); the two orders of
pooling and scaling: Rahaman and Thiery, NeurIPS 2021 (arXiv 2007.08792).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metalearn.core.bayes.predictive import mean_log_probabilities, negative_log_likelihoods
from metalearn.core.checks import check_number
from metalearn.core.tree import check_floating
from metalearn.errors import SettingError
from metalearn.evaluation.targets import check_sample_targets
from metalearn.signatures import checked

__all__ = ["Pooling", "Temperature", "fit_temperature", "tempered_log_probabilities"]

Pooling = Literal["members", "scale_then_pool", "pool_then_scale"]
"""``members``: a temperature each, nothing pooled. ``scale_then_pool``: all members' logits by one
temperature, then the mean of probabilities. ``pool_then_scale``: the logarithm of the mean
probabilities by the temperature, renormalised."""

_LIMIT = 100.0  # temperatures are sought in 1/100..100
_GRID, _STEPS = 17, 60
_CLOSE, _FLAT = 1e-10, 1e-14  # in log T; of a slope that is rounding alone


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature; each ``[M]`` for members, a scalar for an ensemble (float64, CPU).

    Attributes:
        temperature: T; the logits are divided by it.
        nll_before: mean NLL at T = 1, in nats.
        nll_after: mean NLL at T, never above ``nll_before``.
        at_bound: the NLL still falls at the end of the range 0.01..100: a model that is always
            right has its best T at 0, one that is no better than chance at infinity.
    """

    temperature: Tensor
    nll_before: Tensor
    nll_after: Tensor
    at_bound: Tensor


@checked
def tempered_log_probabilities(
    logits: Tensor, temperature: Tensor | float, *, pooling: Pooling
) -> Tensor:
    """Log-probabilities under a temperature: ``[M, N, C]`` for members, else ``[N, C]``.

    Args:
        logits: ``[M, N, C]``.
        temperature: a scalar, or ``[M]`` for ``pooling="members"``.
        pooling: see `Pooling`.

    Raises:
        SettingError: another pooling.
    """
    check_floating(logits, "logits")
    members = (len(logits),) if logits.dim() == 3 and pooling == "members" else ()
    if not isinstance(temperature, Tensor) or not temperature.dim():
        members = ()
    check_number("temperature", temperature, above=0, shape=members)
    scale = torch.as_tensor(temperature).to(logits)
    if pooling == "members":
        return (logits / scale.reshape(-1, 1, 1)).log_softmax(-1)
    if pooling == "scale_then_pool":
        return mean_log_probabilities(logits / scale)
    if pooling == "pool_then_scale":
        return (mean_log_probabilities(logits) / scale).log_softmax(-1)
    raise SettingError("pooling", pooling, f"one of {', '.join(get_args(Pooling))} is needed")


@checked
def fit_temperature(logits: Tensor, targets: Tensor, *, pooling: Pooling) -> Temperature:
    """The temperature of least mean NLL on held-out samples, within 0.01..100.

    The best of 17 temperatures, equally spaced in log T, brackets the minimum (scaling before
    pooling is not convex); Newton's method on log T, falling back on bisection, refines it. Where
    nothing lowers the NLL, T stays 1.

    Args:
        logits: ``[M, N, C]`` (M = 1 for a single model), of samples not trained on.
        targets: class indices ``[N]``.
        pooling: what shares a temperature, see `Pooling`.

    Raises:
        SettingError: other shapes, no samples, logits that are not finite, targets out of range, or
            another pooling.
    """
    _check(logits, targets)
    if pooling not in get_args(Pooling):
        raise SettingError("pooling", pooling, f"one of {', '.join(get_args(Pooling))} is needed")
    values, wanted = logits.detach().cpu().double(), targets.detach().cpu().long()
    if pooling == "members":  # one after the other: small enough for the processor's cache
        found = [_fit(member.unsqueeze(0), wanted) for member in values]
        return Temperature(*(torch.stack(column) for column in zip(*found)))
    if pooling == "pool_then_scale":
        values = mean_log_probabilities(values).unsqueeze(0)
    return Temperature(*_fit(values, wanted))


def _fit(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Temperature, NLL before and after, and whether it is at a bound: scalars."""

    def nll(log_t: Tensor) -> Tensor:
        log_p = tempered_log_probabilities(logits, log_t.exp(), pooling="scale_then_pool")
        return negative_log_likelihoods(log_p, targets).mean()

    one = torch.zeros((), dtype=torch.float64)
    at, at_bound = _minimum(nll)
    with torch.no_grad():
        before, after = nll(one), nll(at)
    if after > before:  # by rounding alone
        at, after = one, before
    return at.exp(), before, after, torch.tensor(at_bound)


def _minimum(nll: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
    """The log T of the least value, and whether it lies at a bound."""
    grid = torch.linspace(-1, 1, _GRID, dtype=torch.float64) * math.log(_LIMIT)
    middle = _GRID // 2
    grid[middle] = 0  # T = 1
    with torch.no_grad():
        heights = torch.stack([nll(at) for at in grid])
    best = int(heights.argmin())
    if heights[middle] <= heights[best] + 1e-12:
        best = middle
    low, at, high = grid[max(best - 1, 0)], grid[best], grid[min(best + 1, _GRID - 1)]
    for _ in range(_STEPS):
        slope, bend = _derivatives(nll, at)
        low, high = (at, high) if slope < 0 else (low, at)
        newton = at - slope / bend
        inside = bool(bend > 0) and bool(low < newton) and bool(newton < high)
        there = newton if inside else (low + high) / 2
        if abs(slope) < _FLAT or abs(there - at) < _CLOSE:
            break
        at = there
    ends = grid[0], grid[-1]
    return at, any(bool(abs(at - end) < 1e-6) for end in ends)


def _derivatives(nll: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(nll(at), at, create_graph=True)
        (bend,) = torch.autograd.grad(slope, at)
    return slope.detach(), bend


def _check(logits: Tensor, targets: Tensor) -> None:
    check_floating(logits, "logits")
    if logits.ndim != 3 or not logits.numel():
        accepted = "[M, N, C] with at least one member, sample and class is needed"
        raise SettingError("shape of logits", list(logits.shape), accepted)
    if not bool(logits.isfinite().all()):
        raise SettingError("logits", "not finite", "finite logits are needed")
    check_sample_targets(targets, samples=logits.shape[1], classes=logits.shape[2])
