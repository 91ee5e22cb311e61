"""What goes together: what is learnt, how the gradient is taken, where runs start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metalearn.core import HyperMethod, ImplicitSolver
from metalearn.core.hyper.hyper_gradient import check_choices
from metalearn.errors import SettingError
from metalearn.signatures import check_settings
from metalearn.trainers.hyper.kinds import RunValues
from metalearn.trainers.hyper.run_settings import RunSettings
from metalearn.trainers.loop.settings import LoopSettings

__all__ = ["GradientSettings", "check_combination"]


@dataclass(frozen=True)
class GradientSettings:
    """How the gradient through a run is taken; see `metalearn.core.hyper_gradient`."""

    method: HyperMethod
    truncation: int | None
    memory: str | int | None
    implicit: ImplicitSolver | None

    @classmethod
    def of(
        cls,
        method: HyperMethod,
        steps: int,
        *,
        truncation: int | None,
        memory: str | int | None,
        implicit: ImplicitSolver | Mapping[str, Any] | None,
    ) -> GradientSettings:
        """These settings, checked for a run of so many steps.

        Raises:
            SettingError: what the method has no use for.
        """
        check_choices(method, steps, memory, truncation)
        if isinstance(implicit, Mapping):
            check_settings(ImplicitSolver, implicit, "implicit.", without=("batch",))
            try:
                implicit = ImplicitSolver(**implicit)
            except SettingError as error:
                name = f"implicit.{error.setting}"
                raise SettingError(name, error.value, error.accepted) from error
        if implicit is not None and method != "implicit":
            raise SettingError("implicit", "a solver", "method='implicit' is needed for it")
        return cls(method, truncation, memory, implicit)


def check_combination(
    values: RunValues, run: RunSettings, how: GradientSettings, limits: LoopSettings
) -> None:
    """Refuse what would learn nothing, or has no meaning together.

    Args:
        values: what a run gets of what is learnt.
        run: its settings.
        how: the gradient is taken.
        limits: of the outer loop.

    Raises:
        SettingError: the first of them.
    """
    if how.method == "implicit" and values.in_optimizer:
        accepted = "another is needed: a minimum does not depend on the optimiser, which is learnt"
        raise SettingError("method", how.method, accepted)
    if how.method == "first_order" and values.in_loss:
        accepted = "another is needed: of what is in the inner loss it has no gradient"
        raise SettingError("method", how.method, accepted)
    if limits.precision != "float32":
        accepted = "float32 is needed where runs are differentiated"
        raise SettingError("precision", limits.precision, accepted)
    rate = values.in_optimizer.get("lr")
    of_steps = rate is not None and rate.dim() > 0
    if of_steps and run.scored_steps != run.steps:
        accepted = f"null is needed, or {run.steps}: so many steps have a learnt rate"
        raise SettingError("inner.whole_steps", run.whole_steps, accepted)
    if run.start != "warm":
        return
    if of_steps or run.schedule != "constant":
        accepted = "fixed or fresh is needed: a rate for each step is that of runs from the start"
        raise SettingError("inner.start", run.start, accepted)
    if limits.accumulate != 1:
        accepted = "1 is needed with inner.start='warm', where each run begins where one ended"
        raise SettingError("accumulate", limits.accumulate, accepted)
