"""What stands in the place of validation where tasks have no validation split.

Axes: M members, or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.tasks import outputs_by_split
from metalearn.trainers.loop.protocols import Evaluation, Evaluator, Stateless
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.meta.evaluator import MetaEvaluator

__all__ = ["Unvalidated", "evaluator_for"]


def evaluator_for(evaluator: MetaEvaluator, settings: LoopSettings) -> Evaluator:
    """The evaluator that a training takes: `Unvalidated` where tasks have no validation split.

    Raises:
        SettingError: settings that need validations, where there are none.
    """
    if "validation" in outputs_by_split(evaluator.tasks):
        return evaluator
    needed = "is needed: the tasks have no validation split"
    if settings.patience is not None:
        raise SettingError("patience", settings.patience, f"None {needed}")
    if evaluator.select_by != "transductive":
        raise SettingError("select_by", evaluator.select_by, f"transductive {needed}")
    module = evaluator.learner.module
    members = len(module) if isinstance(module, Ensemble) else 1
    return Unvalidated(members, evaluator.bands)


class Unvalidated(Stateless):
    """The later the better: what was trained longest is the best state.

    Its score is the number of steps that were taken.

    Args:
        members: M.
        bands: see `metalearn.trainers.loop.protocols.Evaluator`.
    """

    monitor = "validation/step"
    larger_is_better = True

    def __init__(self, members: int, bands: Mapping[str, Sequence[str]]) -> None:
        self.members, self.bands = members, bands

    def __call__(self, step: int) -> Evaluation:
        """The step, for every member."""
        return Evaluation({self.monitor: float(step)}, torch.full((self.members,), float(step)))
