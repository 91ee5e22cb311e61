"""A budget for steps that are chosen by what earlier ones released: a Rényi filter.

Axes: none; divergences are those of one fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from metalearn.core.checks import call_given, check_number
from metalearn.errors import SettingError, check_whole
from metalearn.privacy.accountants import (
    epsilon_at_order,
    order_of_least_epsilon,
    rdp_epsilon,
    renyi_divergence,
)
from metalearn.privacy.accounting import check_epsilon, events_of, least_noise
from metalearn.privacy.adaptive import AdaptiveGaussian
from metalearn.privacy.events import GaussianEvent
from metalearn.privacy.mechanism import Mechanism
from metalearn.schema import Kind, mapping, nothing, number, whole
from metalearn.signatures import checked

__all__ = ["RenyiFilter", "noise_multiplier_of_plan"]

Steps = Sequence[tuple[Mechanism, int]]


class RenyiFilter:
    """A budget ρ of Rényi divergence at one order α, both fixed before the first step.

    Steps may be chosen by all that was released before them: as long as the sum of the divergences
    D_α of the steps that were chosen stays within ρ, whatever was chosen, all that was released
    together has at most the divergence ρ at α. So it is (ε, δ)-differentially private with

        ε = ρ + log((α − 1)/α) − (log δ + log α)/(α − 1).

    What holds is the ε of the **budget**. The sum of what came about is an output too: an ε of less
    than the budget may not be claimed of it, nor the least one over several orders.

    Feldman and Zrnic, "Individual Privacy Accounting via a Rényi Filter", NeurIPS 2021; Lécuyer,
    "Practical Privacy Filters and Odometers with Rényi Differential Privacy and Applications to
    Differentially Private Deep Learning", 2021, arXiv 2103.01379; Rogers, Roth, Ullman and Vadhan,
    "Privacy Odometers and Filters: Pay-as-you-Go Composition", NeurIPS 2016; ε of a divergence:
    Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020.

    Args:
        order: α, above 1.
        budget: ρ, at least 0.
        delta: δ in (0, 1).
        steps: for how many the budget was made; those beyond, which an interrupted run takes anew,
            are not of its choice.

    Raises:
        SettingError: a value out of range.
    """

    @checked
    def __init__(self, order: float, budget: float, *, delta: float, steps: int) -> None:
        check_number("order", order, above=1, below=math.inf)
        check_number("budget", budget, least=0)
        check_number("delta", delta, above=0, below=1, accepted="a number in (0, 1) is needed")
        check_whole("steps", steps, 1)
        self.order, self.budget = float(order), float(budget)
        self.delta, self.steps = float(delta), steps

    @classmethod
    def of_plan(cls, plan: Steps, delta: float) -> RenyiFilter:
        """The filter for which a plan of steps fills the budget, at the order that is best for it.

        Args:
            plan: mechanisms, each with how often its step is taken; at least one step. Other steps
                may be taken in the end: the plan says how much they may spend together.
            delta: δ in (0, 1).

        Raises:
            SettingError: a value out of range.
            DataError: dp-accounting is not installed.
        """
        check_number("delta", delta, above=0, below=1, accepted="a number in (0, 1) is needed")
        count = sum(count for _, count in plan)
        check_whole("steps", count, 1)
        if math.isinf(rdp_epsilon(events_of(plan), float(delta))):
            raise SettingError("plan", list(plan), "steps are needed, none of them without noise")
        order = order_of_least_epsilon(events_of(plan), float(delta))
        found = cls(order, 0.0, delta=delta, steps=count)
        found.budget = found.spent(plan)
        return found

    def spent(self, steps: Steps) -> float:
        """Σ D_α of steps as they were drawn; infinity without noise.

        Raises:
            DataError: dp-accounting is not installed.
        """
        return sum(count * renyi_divergence(event, self.order) for event, count in _drawn(steps))

    def has_room(self, steps: Steps) -> bool:
        """Whether steps, those so far and those to come, are within the budget."""
        return self.spent(steps) <= self.budget

    def epsilon(self, steps: Steps) -> float:
        """ε at δ that holds of steps which were taken, 0 where there is none.

        It is that of the budget, whatever was chosen, and however early the run was ended. Steps
        beyond the planned ones, which were taken anew after kills, may find nothing smaller left to
        choose: ε is that of ρ and as many of the largest steps that could have been chosen as there
        are of these, whether they were as large or not. Steps of another σ or M than the first that
        were chosen, as after a change of settings, add to ρ as the largest of theirs; and what was
        spent holds where that is more.

        Args:
            steps: of the run, each with its number.

        Raises:
            DataError: dp-accounting is not installed.
        """
        own, others = _by_setting(steps)
        count = sum(count for _, count in own)
        if not count:
            return 0.0
        largest = max(renyi_divergence(event, self.order) for event in events_of(own))
        level = self.budget + largest * max(0, count - self.steps)
        for event, further in events_of(others).items():
            level += renyi_divergence(event, self.order) * further
        return epsilon_at_order(max(level, self.spent(steps)), self.order, self.delta)

    def state(self) -> dict[str, Any]:
        """As plain JSON, of which `from_state` makes it anew with a δ."""
        return {"order": self.order, "budget": self.budget, "steps": self.steps}

    @staticmethod
    def state_kind() -> Kind:
        """What a state has to be."""
        return mapping({"order": number(1), "budget": number(0), "steps": whole(1)}, others=nothing)

    @classmethod
    def from_state(cls, state: Mapping[str, Any], delta: float) -> RenyiFilter:
        """What `state` gave."""
        return cls(state["order"], state["budget"], delta=delta, steps=state["steps"])


@checked
def noise_multiplier_of_plan(
    plan: Callable[[float], Steps], *, epsilon: float, delta: float
) -> float:
    """The least σ with which a plan of steps spends at most ε by Rényi divergences.

    Args:
        plan: from σ to mechanisms, each with how often its step is taken.
        epsilon: the ε that may be spent, in (0, 100]; above 0.9999 of it is.
        delta: δ in (0, 1).

    Raises:
        SettingError: a value out of range, or an ε that no noise keeps to.
        DataError: dp-accounting is not installed.
    """
    epsilon = check_epsilon(epsilon)
    check_number("delta", delta, above=0, below=1, accepted="a number in (0, 1) is needed")

    def planned(noise: float) -> Steps:
        steps = call_given(plan, "plan", noise)
        if not isinstance(steps, list | tuple) or not steps:
            accepted = "a list is needed of mechanisms, each with its number of steps"
            raise SettingError("plan", f"a function that gives {steps!r:.40}", accepted)
        return steps

    @cache
    def spent(noise: float) -> float:
        return rdp_epsilon(events_of(planned(noise)), float(delta))

    check_whole("steps", sum(count for _, count in planned(1.0)), 1)
    return least_noise(spent, epsilon, 1.0)


def _by_setting(steps: Steps) -> tuple[Steps, Steps]:
    """Steps within the choice that the first one had, and those chosen of another σ, M or N."""
    taken = [(mechanism, count) for mechanism, count in steps if count]
    chosen = (made for made, _ in taken if isinstance(made, AdaptiveGaussian))
    first = next((made.events(1) for made in chosen), None)
    others = [
        (made, count)
        for made, count in taken
        if isinstance(made, AdaptiveGaussian) and made.events(1) != first
    ]
    return [one for one in taken if one not in others], others


def _drawn(steps: Steps) -> list[tuple[GaussianEvent, int]]:
    """What was drawn: of steps that were chosen, those that were."""
    found = []
    for mechanism, count in steps:
        if isinstance(mechanism, AdaptiveGaussian):
            found += mechanism.drawn_events(count)
        else:
            found += mechanism.events(count)
    return [(event, count) for event, count in found if count]
