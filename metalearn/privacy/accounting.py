"""ε of steps, and σ and steps for an ε.

Axes: N examples of the training data, of which a step takes B, or B on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.privacy.accountants import pld_epsilon, rdp_epsilon
from metalearn.privacy.events import GaussianEvent, Neighbours
from metalearn.privacy.mechanism import Mechanism, Sampling, drawn_gaussian
from metalearn.signatures import checked

__all__ = [
    "Accountant",
    "PrivacySpent",
    "check_accounting",
    "check_epsilon",
    "events_of",
    "least_noise",
    "noise_multiplier_for",
    "one_relation",
    "privacy_spent",
    "steps_for",
]

Accountant = Literal["pld", "rdp"]
"""By what ε is bounded: privacy loss distributions, or Rényi divergences."""

_LARGEST = 100.0  # beyond it an ε is what Rényi divergences give, at once
_MOST_STEPS = 10**9
_NOISE = 1e-3, 1e9
_TOLERANCE = 1e-4  # of an ε below what was asked for
_FACTOR = 1.15  # of a first look around: bounds by Rényi divergences are seldom further away


@dataclass(frozen=True)
class PrivacySpent:
    """What was spent: (ε, δ), and for which neighbouring data sets it holds."""

    epsilon: float
    """ε, infinity without noise."""
    delta: float
    """δ."""
    neighbours: Neighbours
    """Which data sets an adversary cannot tell apart."""
    accountant: Accountant
    """By what ε is bounded, which may be a tighter one than was asked for."""

    def __str__(self) -> str:
        relation = self.neighbours.replace("_", " ")
        return f"ε = {self.epsilon:.4g} at δ = {self.delta:g} ({self.accountant}, {relation})"


@checked
def privacy_spent(
    steps: Sequence[tuple[Mechanism, int]], delta: float, accountant: Accountant = "pld"
) -> PrivacySpent:
    """(ε, δ) of all steps together, of any number of mechanisms, in whatever order they came.

    By ``"pld"`` ε is the least of two bounds, both from above: that of the composed privacy loss
    distributions, on a grid of 10⁻⁴ (coarser where one event's losses spread over more than ±8),
    and that of Rényi divergences, which alone is taken where it is above 100. The first evaluation
    of a mechanism takes about a second, further ones a few tenths; by ``"rdp"`` a tenth and less
    than a millisecond. A noise multiplier below 10⁻³ counts as none.

    Args:
        steps: mechanisms, each with how often its step was taken; at least one, 0 times will do.
        delta: δ in (0, 1), usually below 1/N.
        accountant: by what ε is bounded; sampling of fixed size is accounted by ``"rdp"`` alone.

    Raises:
        SettingError: a value out of range, mechanisms whose neighbouring relations differ, or an
            accountant that does not know their sampling.
        DataError: dp-accounting is not installed.
    """
    check_accounting(delta, accountant)
    delta, neighbours, events = float(delta), one_relation(steps), events_of(steps)
    drawn = any(event.without_replacement and event.rate < 1 for event in events)
    if drawn and accountant == "pld":
        accepted = 'batches of fixed size are accounted by "rdp" alone'
        raise SettingError("accountant", accountant, accepted)
    epsilon, by = rdp_epsilon(events, delta), accountant
    if accountant == "pld":
        tighter = pld_epsilon(events, delta) if epsilon <= _LARGEST else math.inf
        by = "pld" if tighter <= epsilon < math.inf or not epsilon else "rdp"
        by = "pld" if epsilon == math.inf else by
        epsilon = min(epsilon, tighter)
    return PrivacySpent(epsilon, delta, neighbours, by)


@checked
def noise_multiplier_for(
    epsilon: float,
    *,
    delta: float,
    sampling: Sampling,
    examples: int,
    batch_size: int,
    steps: int,
    accountant: Accountant = "pld",
    bands: int = 1,
) -> float:
    """The least σ with which so many steps spend at most ε; they spend above 0.9999·ε.

    Args:
        epsilon: the ε that may be spent, in (0, 100].
        delta: δ in (0, 1).
        sampling: how the examples of a step are drawn, see `SampledGaussian`.
        examples: N.
        batch_size: B.
        steps: how many are taken, at least 1.
        accountant: by what ε is bounded.
        bands: b of correlated noise, see `BandedGaussian`; 1 is that of DP-SGD.

    Raises:
        SettingError: a value out of range, or an ε that no noise keeps to.
        DataError: dp-accounting is not installed.
    """
    check_accounting(delta, accountant)
    epsilon = check_epsilon(epsilon)
    check_whole("steps", steps, 1)

    @cache
    def spent(noise: float, by: Accountant = accountant) -> float:
        mechanism = drawn_gaussian(sampling, examples, batch_size, noise, bands=bands)
        return privacy_spent([(mechanism, steps)], delta, by).epsilon

    start = 1.0
    if accountant == "pld":
        start = least_noise(lambda noise: spent(noise, "rdp"), epsilon, 1.0)
    return least_noise(spent, epsilon, start)


@checked
def steps_for(
    epsilon: float, *, delta: float, mechanism: Mechanism, accountant: Accountant = "pld"
) -> int:
    """The largest number of steps that spend at most ε; 0 where one spends more.

    Args:
        epsilon: the ε that may be spent, in (0, 100].
        delta: δ in (0, 1).
        mechanism: of every step.
        accountant: by what ε is bounded.

    Returns:
        The number, at most 10⁹.

    Raises:
        SettingError: a value out of range.
        DataError: dp-accounting is not installed.
    """
    check_accounting(delta, accountant)
    epsilon = check_epsilon(epsilon)

    @cache
    def spent(steps: float, by: Accountant = accountant) -> float:
        return privacy_spent([(mechanism, round(steps))], delta, by).epsilon

    start = 1
    if accountant == "pld":
        start = max(1, _most_steps(lambda steps: spent(steps, "rdp"), epsilon, 1))
    return _most_steps(spent, epsilon, start)


def check_accounting(delta: float, accountant: Accountant) -> None:
    """Refuse what is no δ or no accountant.

    Raises:
        SettingError: names it.
    """
    check_number("delta", delta, above=0, below=1, accepted="a number in (0, 1) is needed")
    known = get_args(Accountant)
    if not isinstance(accountant, str) or accountant not in known:
        raise SettingError("accountant", accountant, f"one of {', '.join(known)} is needed")


def events_of(steps: Sequence[tuple[Mechanism, int]]) -> dict[GaussianEvent, int]:
    """What all steps compose of, each with how often.

    Raises:
        SettingError: a number of steps that is none.
    """
    events: dict[GaussianEvent, int] = {}
    for mechanism, count in steps:
        check_whole("steps", count, 0)
        for event, times in mechanism.events(count):
            events[event] = events.get(event, 0) + times
    return events


def check_epsilon(epsilon: float) -> float:
    """Refuse an ε that no noise is looked for.

    Raises:
        SettingError: names it.
    """
    accepted = f"a number above 0 and at most {_LARGEST:g} is needed"
    check_number("epsilon", epsilon, above=0, accepted=accepted)
    if epsilon > _LARGEST:
        raise SettingError("epsilon", float(epsilon), accepted)
    return float(epsilon)


def one_relation(steps: Sequence[tuple[Mechanism, int]]) -> Neighbours:
    """The relation of all mechanisms.

    Raises:
        SettingError: there is none, or there are several.
    """
    found = sorted({mechanism.neighbours for mechanism, _ in steps})
    if len(found) != 1:
        accepted = "at least one mechanism is needed"
        if found:
            accepted = "an ε is for one neighbouring relation, so all steps have to share it"
        raise SettingError("steps", ", ".join(found) or list(steps), accepted)
    return found[0]


def least_noise(spent: Callable[[float], float], epsilon: float, start: float) -> float:
    """The least σ that spends at most ε, and above 0.9999 of it; ``start`` is where to begin.

    Raises:
        SettingError: no noise keeps to it.
    """
    least, most = _NOISE
    enough, factor = start, _FACTOR
    while spent(enough) > epsilon:
        enough, factor = enough * factor, factor**2
        if enough > most:
            raise SettingError("epsilon", epsilon, "no noise keeps to it: a larger one is needed")
    little, factor = enough / _FACTOR, _FACTOR
    while spent(little) <= epsilon:  # ends: below the least, noise counts as none
        enough, factor = little, factor**2
        little = max(little / factor, least / 2)
    return _boundary(spent, epsilon, enough, little)


def _most_steps(spent: Callable[[float], float], epsilon: float, start: int) -> int:
    within, beyond, factor = 0, start, _FACTOR
    while spent(beyond) <= epsilon:
        if beyond >= _MOST_STEPS:
            return _MOST_STEPS
        within, beyond = beyond, min(math.ceil(beyond * factor), _MOST_STEPS)
        factor **= 2
    while not within:
        if beyond == 1:
            return 0
        lower = beyond // 2
        within, beyond = (lower, beyond) if spent(lower) <= epsilon else (0, lower)
    return round(_boundary(spent, epsilon, within, beyond, whole=True))


def _boundary(
    spent: Callable[[float], float],
    epsilon: float,
    within: float,
    beyond: float,
    *,
    whole: bool = False,
) -> float:
    """The last argument that spends at most ε, between one that does and one that does not.

    The Illinois rule: secants of log ε over the logarithm of the argument, in which the value of an
    end that stays twice running is halved, so that both ends close in.
    """

    def excess(argument: float) -> float:
        return math.log(max(spent(argument), 1e-12) / aimed)

    aimed = epsilon if whole else epsilon * (1 - _TOLERANCE / 2)
    low, high, before = excess(within), excess(beyond), None
    while abs(beyond - within) > (1 if whole else 1e-9 * within):
        if not whole and spent(within) >= epsilon * (1 - _TOLERANCE):
            break
        share = low / (low - high) if high < math.inf else 0.5
        middle = within * (beyond / within) ** min(max(share, 1e-3), 0.999)
        if whole:
            middle = min(max(round(middle), min(within, beyond) + 1), max(within, beyond) - 1)
        inside = spent(middle) <= epsilon
        halved = 0.5 if inside == before else 1.0
        if inside:
            within, low, high = middle, min(excess(middle), 0.0), high * halved
        else:
            beyond, high, low = middle, excess(middle), low * halved
        before = inside
    return within
