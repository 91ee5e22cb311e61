"""The batch of a private training that grows where the mean of a step is mostly noise.

Axes: N units that are private each by itself, B of a step as expected; P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.float64 import widest
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known
from metalearn.privacy import (
    AdaptiveGaussian,
    BatchSampling,
    Mechanism,
    PrivacyAccount,
    RenyiFilter,
    SampledGaussian,
    noise_multiplier_of_plan,
    sampling_of,
)
from metalearn.privacy.accountants import LEAST_NOISE
from metalearn.privacy.mechanism import SeededNoise
from metalearn.schema import Kind, mapping, maybe, number, tensor_like, whole

__all__ = ["BatchGrowth", "GrowingBatch", "GrowthPlan", "growing_batch", "growth_plan"]

BatchGrowth: TypeAlias = int | Mapping[str, Any] | None
"""The largest B, or ``most`` with ``share``, ``threshold`` and ``window`` by name."""

_NAMES = "most", "share", "threshold", "window"
_NEEDED = {"sampling": "poisson", "accountant": "rdp", "noise_bands": 1, "clip_quantile": None,
           "runs": 1}  # fmt: skip


@dataclass(frozen=True)
class GrowthPlan:
    """How the expected batch B may double, at most to M, and what noise leaves room for it."""

    most: int
    """M."""
    share: float = 0.5
    """Of all steps: σ is such that so many could be of M units and the others of B."""
    threshold: float = 1.0
    """B doubles where the variance of a step's mean is above so many times ‖G‖²."""
    window: int = 10
    """Steps whose averages decide."""

    def within(
        self,
        units: int,
        expected: int,
        steps: int,
        *,
        delta: float,
        epsilon: float | None,
        noise_multiplier: float | None,
    ) -> tuple[AdaptiveGaussian, RenyiFilter]:
        """The first step, and the budget of all: what steps as planned spend at their best order.

        σ is the least with which they spend at most ε, unless it is given.
        """
        sigma = noise_multiplier
        planned = partial(self._planned, units, expected, steps)
        if sigma is None:
            assert epsilon is not None
            sigma = noise_multiplier_of_plan(planned, epsilon=epsilon, delta=delta)
        check_number("noise_multiplier", sigma, least=LEAST_NOISE)  # below it counts as none
        first = AdaptiveGaussian(units, expected, self.most, sigma)
        return first, RenyiFilter.of_plan(planned(sigma), delta)

    def _planned(
        self, units: int, expected: int, steps: int, sigma: float
    ) -> list[tuple[Mechanism, int]]:
        large = int(self.share * steps)
        first = SampledGaussian("poisson", units, expected, sigma)
        return [
            (first, steps - large),
            (SampledGaussian("poisson", units, self.most, sigma), large),
        ]


def growth_plan(
    given: BatchGrowth, units: int, expected: int, steps: int, **others: Any
) -> GrowthPlan | None:
    """The plan that the setting ``batch_growth`` asks for; None where B stays.

    Args:
        given: the setting.
        units: N.
        expected: B of the first step.
        steps: in all.
        others: settings that it goes with at one value alone.

    Raises:
        SettingError: a value out of its range; another setting that it does not go with.
    """
    if given is None:
        return None
    found: dict[str, Any] = {"most": given}
    if isinstance(given, Mapping):
        for name in given:
            check_known("batch_growth", name, _NAMES)
        found = {"most": None} | {name: value for name, value in given.items() if value is not None}
    check_whole("batch_size", expected, 1, units)
    shown = "batch_growth.{}" if isinstance(given, Mapping) else "batch_growth"
    plan = GrowthPlan(**found)
    check_whole(shown.format("most"), plan.most, expected, units)
    accepted = "a number in (0, 1] is needed"
    check_number("batch_growth.share", plan.share, above=0, accepted=accepted)
    if plan.share > 1:
        raise SettingError("batch_growth.share", plan.share, accepted)
    check_number("batch_growth.threshold", plan.threshold, above=0)
    check_whole("batch_growth.window", plan.window, 2)
    for name, value in others.items():
        wanted = _NEEDED[name]
        if value != wanted:
            shown = "null" if wanted is None else str(wanted)
            raise SettingError(name, value, f"{shown} is needed where batch_growth is given")
    return plan


def growing_batch(
    plan: GrowthPlan | None,
    account: PrivacyAccount,
    units: Tensor | int,
    steps: int,
    seed: int | None,
) -> GrowingBatch | None:
    """The batch of a plan, see `GrowingBatch`; None without one."""
    return None if plan is None else GrowingBatch(account, plan, units, steps=steps, seed=seed)


class GrowingBatch:
    """Draws batches whose expected size doubles where the mean of a step is mostly noise.

    The noisy mean gradients g̃_t of a window of n steps, which are released, are all that is read:

        ‖G‖² ≈ S = mean of ⟨g̃_{t−1}, g̃_t⟩,    V = mean of ‖g̃_t‖² − S.

    Samples and noise of two steps are independent, so that S is unbiased while parameters move
    little: with a learning rate η it comes out too small by η·tr(H·Cov g̃), H the Hessian. V is the
    variance of a step's mean: that of the clipped gradients of about B samples, which falls as
    1/B, and that of the noise, P·σ²C²/B². At the end of a window B doubles, and the next begins,
    where V > threshold·S: 1 is where McCandlish et al. ("An Empirical Model of Large-Batch
    Training", 2018, arXiv 1812.06162) have the noise scale equal to B.

    B is chosen by what was released, so that steps are spent from a `RenyiFilter`: B doubles only
    where, with all steps that are left taken at the new size, the account stays within the budget.
    A run that takes steps anew after a kill has less left; B falls back where it does not fit any
    more, and stays where even the first one does not.

    Args:
        account: of the training, with a budget; its mechanism is that of the first step.
        plan: how B grows.
        units: N indices or their number.
        steps: in all.
        seed: of batches; None takes the secure generator.
    """

    def __init__(
        self,
        account: PrivacyAccount,
        plan: GrowthPlan,
        units: Tensor | int,
        *,
        steps: int,
        seed: int | None,
    ) -> None:
        first = account.mechanism
        assert isinstance(first, AdaptiveGaussian) and account.budget is not None
        self.account, self.plan, self.steps = account, plan, steps
        self._units, self._seed, self._first = units, seed, first
        self._sizes = _doubled(first.batch_size, plan.most)
        self._level, self._taken, self._pairs = 0, 0, 0
        self._squares, self._products, self.ratio = 0.0, 0.0, math.nan
        self._previous: dict[str, Tensor] | None = None
        self._begun = False  # whether it was asked if steps fit, since the start or a load
        self._set(0)

    @property
    def size(self) -> int:
        """B of the step that was begun last."""
        return self._sizes[self._level]

    def advance(self, step: int) -> None:
        """Begin a step: B is that of it now."""
        if self._begun and self._taken < self.plan.window:
            return
        level = self._level
        if self._taken >= self.plan.window:
            level = min(level + self._is_noise(), len(self._sizes) - 1)
            self._restart()
        while level and not self._has_room(level, self.steps - step):
            level -= 1
        self._begun = True
        if level != self._level:
            self._set(level)
            self._restart()

    def ahead(self) -> int:
        """Steps from the one that was begun last on that are of its size for certain."""
        return max(1, self.plan.window - self._taken)

    def draw(self, step: int) -> Tensor:
        """See `BatchSampling`."""
        return self._sampling.draw(step)

    def observe(self, noisy: Mapping[str, Tensor]) -> None:
        """Take the noisy mean gradient of a step into the averages."""
        if self._previous is not None:
            self._products += _product(self._previous, noisy)
            self._pairs += 1
        self._squares += _product(noisy, noisy)
        self._taken += 1
        self._previous = {name: value.detach().clone() for name, value in noisy.items()}

    def records(self) -> dict[str, float]:
        """B, and V/S of the last window where both are known."""
        known = {"privacy/noise_to_signal": self.ratio} if math.isfinite(self.ratio) else {}
        return {"privacy/batch_size": float(self.size), **known}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: B, and what the next decision needs, all of it released."""
        window = {"taken": self._taken, "pairs": self._pairs, "squares": self._squares}
        window |= {"products": self._products, "ratio": self.ratio}
        return {"batch_growth": {"size": self.size, **window, "previous": self._previous}}

    def state_kinds(self, params: Mapping[str, Tensor]) -> list[Kind]:
        """The same, of gradients of ``params``; a training whose batch stayed has none of it."""
        like = {name: tensor_like(value) for name, value in params.items()}
        fields = {
            "size": whole(1), "taken": whole(), "pairs": whole(), "squares": number(0),
            "products": number(), "ratio": number(nan=True), "previous": maybe(mapping(like)),
        }  # fmt: skip
        return [mapping({}, {"batch_growth": mapping(fields)})]

    def load_state(self, state: Mapping[str, Any], params: Mapping[str, Tensor]) -> None:
        """Take what `state` gave; begin anew after a training whose batch stayed."""
        self._begun = False
        found = state.get("batch_growth")
        if found is None:
            return
        self._set(max(i for i, size in enumerate(self._sizes) if not i or size <= found["size"]))
        self._taken, self._pairs = found["taken"], found["pairs"]
        self._squares, self._products = found["squares"], found["products"]
        self.ratio, previous = found["ratio"], found["previous"]
        if previous is not None:
            previous = {name: previous[name].to(value) for name, value in params.items()}
        self._previous = previous

    def _restart(self) -> None:
        """Begin a window; its first pair has the last step of the one before it."""
        self._taken = self._pairs = 0
        self._squares = self._products = 0.0

    def _is_noise(self) -> bool:
        """Whether the variance of a step's mean is above the threshold."""
        signal = self._products / max(self._pairs, 1)
        variance = self._squares / self._taken - signal
        self.ratio = variance / signal if signal > 0 else math.inf
        return variance > self.plan.threshold * signal

    def _has_room(self, level: int, left: int) -> bool:
        """Whether all steps that are left fit at a size; seeded noise is counted as if secure."""
        assert self.account.budget is not None
        spent = [(m.of if isinstance(m, SeededNoise) else m, n) for m, n in self.account.steps()]
        return self.account.budget.has_room([*spent, (self._mechanism(level), left)])

    def _mechanism(self, level: int) -> AdaptiveGaussian:
        first, size = self._first, self._sizes[level]
        return AdaptiveGaussian(first.examples, size, first.most, first.noise_multiplier)

    def _set(self, level: int) -> None:
        mechanism, self._level = self._mechanism(level), level
        self.account.change(mechanism)
        self._sampling: BatchSampling = sampling_of(mechanism, self._units, seed=self._seed)


def _doubled(first: int, most: int) -> list[int]:
    """B, 2B, 4B … M."""
    found = [first]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def _product(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The inner product of two gradients, in float64 where their device has it."""
    parts = [widest(one[name]).flatten() @ widest(g).flatten() for name, g in other.items()]
    return float(torch.stack(parts).sum())
