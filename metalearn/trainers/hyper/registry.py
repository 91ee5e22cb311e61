"""The kinds of what shapes a training that are known by name."""

from __future__ import annotations

from collections.abc import Callable

from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.trainers.hyper.distilled import DistilledExamples
from metalearn.trainers.hyper.example_weights import LearntExampleWeights
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup
from metalearn.trainers.hyper.learning_rates import LearntSchedule
from metalearn.trainers.hyper.weight_decay import LearntWeightDecay

__all__ = ["HYPER_KINDS", "made_hyper"]

HYPER_KINDS: dict[str, type[HyperModule]] = {
    "example_weights": LearntExampleWeights,
    "learning_rates": LearntSchedule,
    "weight_decay": LearntWeightDecay,
    "distilled": DistilledExamples,
}
"""All that are known, by the name that ``hyper=`` takes."""


def made_hyper(hyper: str | Callable[[RunSetup], HyperModule], setup: RunSetup) -> HyperModule:
    """What shapes a run, of a name or of what makes it.

    Raises:
        SettingError: an unknown name, what makes something else, a setting that it refuses.
    """
    if isinstance(hyper, str):
        check_known("hyper", hyper, HYPER_KINDS)
        hyper = HYPER_KINDS[hyper]
    try:
        made = hyper(setup)
    except SettingError as error:
        known = error.setting if error.setting == "loss" else f"hyper.{error.setting}"
        raise SettingError(known, error.value, error.accepted) from error
    except TypeError as error:
        accepted = f"what makes a HyperModule of (setup) is needed ({error})"
        raise SettingError("hyper", _name(hyper), accepted) from error
    if not isinstance(made, HyperModule):
        accepted = "what makes a HyperModule of (setup) is needed"
        raise SettingError("hyper", type(made).__name__, accepted)
    return made


def _name(make: object) -> str:
    inside = getattr(make, "func", make)
    return str(getattr(inside, "__name__", type(inside).__name__))
