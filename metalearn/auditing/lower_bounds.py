"""What ε a mechanism has at least, by how well two worlds can be told apart by what it gives out.

In one world a sample took part, in the other it did not. A score of a release is thresholded:
the rates of its mistakes, FPR and FNR, bound what any (ε, δ) can be:

    ε ≥ log((1 − δ − FNR) / FPR),   ε ≥ log((1 − δ − FPR) / FNR),

and for a mechanism that is Gaussian, of which μ = Φ⁻¹(1 − FPR) − Φ⁻¹(FNR) at least,

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ).

Rates are the upper ends of Clopper–Pearson intervals, on other releases than those by which
the threshold was chosen, so that a bound is wrong with a chance of at most 1 − confidence.

Sources: Jagielski, Ullman and Oprea, "Auditing Differentially Private Machine Learning: How Private
is Private SGD?", NeurIPS 2020; Nasr et al., "Tight Auditing of Differentially Private Machine
Learning", USENIX Security 2023; Dong, Roth and Su, "Gaussian Differential Privacy", JRSS B 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = ["EpsilonBound", "epsilon_lower_bound", "gaussian_epsilon"]

_NORMAL = NormalDist()
_HALVINGS = 200


@dataclass(frozen=True)
class EpsilonBound:
    """How private a mechanism is not, at a confidence."""

    epsilon: float
    """ε is at least this, whatever the mechanism; 0 where the worlds could not be told apart."""
    gaussian_epsilon: float
    """The same where the mechanism is a Gaussian one, for which it is tighter."""
    mu: float
    """Of which the latter follows: the worlds are at least so many standard deviations apart."""
    false_positives: float
    """Upper end of their rate."""
    false_negatives: float
    """Upper end of their rate."""
    trials: int
    """In each world, those by which the threshold was chosen not counted."""


@checked
def epsilon_lower_bound(
    inside: Tensor, outside: Tensor, *, delta: float, confidence: float = 0.95
) -> EpsilonBound:
    """The bound that scores of releases in both worlds give.

    Args:
        inside: scores ``[T]`` of releases for which the sample took part; the larger, the likelier.
        outside: the same of releases for which it did not.
        delta: δ, in (0, 1).
        confidence: with which the bound holds, in (0, 1).

    Raises:
        SettingError: fewer than 4 scores of a world, scores that are NaN, a number out of range.
    """
    check_number("delta", delta, above=0, below=1)
    check_number("confidence", confidence, above=0, below=1)
    for name, scores in (("inside", inside), ("outside", outside)):
        check_tensors(scores, name)
        if scores.dim() != 1 or len(scores) < 4:
            raise SettingError(name, list(scores.shape), "at least 4 scores [T] are needed")
        if bool(scores.isnan().any()):
            raise SettingError(name, "NaN", "numbers are needed")
    half_in, half_out = len(inside) // 2, len(outside) // 2
    threshold = _best_threshold(inside[:half_in].double(), outside[:half_out].double())
    rest_in, rest_out = inside[half_in:].double(), outside[half_out:].double()
    level = (1 - confidence) / 2  # each of both rates
    fpr = _upper_rate(int((rest_out > threshold).sum()), len(rest_out), level)
    fnr = _upper_rate(int((rest_in <= threshold).sum()), len(rest_in), level)
    found = [math.log((1 - delta - a) / b) for a, b in ((fnr, fpr), (fpr, fnr)) if 1 - delta > a]
    mu = max(0.0, _quantile(1 - fpr) - _quantile(fnr))
    return EpsilonBound(
        max(0.0, *found) if found else 0.0, gaussian_epsilon(mu, delta), mu, fpr, fnr,
        min(len(rest_in), len(rest_out)),
    )  # fmt: skip


@checked
def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of a Gaussian mechanism whose worlds are μ standard deviations apart, at δ; 0 for μ = 0.

    Raises:
        SettingError: μ below 0, or δ that is not in (0, 1).
    """
    check_number("mu", mu, least=0)
    check_number("delta", delta, above=0, below=1)
    mu, delta = float(mu), float(delta)
    if mu <= 0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def _gaussian_delta(epsilon: float, mu: float) -> float:
    second = _log_cdf(-mu / 2 - epsilon / mu) + epsilon
    return _NORMAL.cdf(mu / 2 - epsilon / mu) - math.exp(second)


def _log_cdf(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))


def _quantile(rate: float) -> float:
    return _NORMAL.inv_cdf(min(max(rate, 1e-300), 1 - 1e-16))


def _best_threshold(inside: Tensor, outside: Tensor) -> float:
    """Where mistakes of both kinds are fewest, of the scores themselves."""
    at: Tensor = torch.unique(torch.cat([inside, outside]))
    wrong_out = 1 - torch.searchsorted(outside.sort().values, at, right=True) / len(outside)
    wrong_in = torch.searchsorted(inside.sort().values, at, right=True) / len(inside)
    best: Tensor = (wrong_out + wrong_in).argmin()
    # between this score and the next: what is found again exactly is told apart there
    after = min(int(best) + 1, len(at) - 1)
    return float((at[int(best)] + at[after]) / 2)


def _upper_rate(hits: int, trials: int, level: float) -> float:
    """The upper end of Clopper and Pearson's interval: P(Binomial(n, p) ≤ hits) = level."""
    if hits >= trials:
        return 1.0
    low, high = hits / trials, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(hits, trials, middle) > level else (low, middle)
    return high


def _at_most(hits: int, trials: int, rate: float) -> float:
    """P(Binomial(trials, rate) ≤ hits)."""
    counts = torch.arange(hits + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(counts + 1) - torch.lgamma(n - counts + 1)
    logs = ways + counts * math.log(rate) + (trials - counts) * math.log1p(-min(rate, 1 - 1e-16))
    return float(logs.logsumexp(0).exp())
