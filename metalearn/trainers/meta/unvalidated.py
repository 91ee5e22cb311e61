"""Which evaluator a training on tasks takes: none scores where tasks have no validation split."""

from __future__ import annotations

from metalearn.errors import SettingError
from metalearn.models import Ensemble
from metalearn.tasks import outputs_by_split
from metalearn.trainers.loop.protocols import Evaluator
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.unvalidated import Unvalidated
from metalearn.trainers.meta.evaluator import MetaEvaluator

__all__ = ["evaluator_for"]


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
