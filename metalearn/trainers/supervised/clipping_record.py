"""What clipping does to the gradient of the validation split, recorded with every validation.

Axes: N samples of the split.
"""

from __future__ import annotations

from typing import Any

from metalearn.core.samples.clipping_bias import clipping_bias
from metalearn.data.regression import SupervisedData
from metalearn.trainers.loop.protocols import Callback, Evaluation, Training
from metalearn.trainers.supervised.per_sample_objective import PerSampleObjective

__all__ = ["ClippingRecord"]

_SAMPLES = 512


class ClippingRecord(Callback):
    """Records the cosine between clipped and plain mean gradient, and the ratio of their norms.

    They are those of the first samples of the validation split, 512 at most, clipped as a step
    clips them and without noise: ``validation/clipping_cosine`` and ``…/clipping_norm_ratio``.

    Args:
        objective: of the training, that clips.
        data: whose validation split is looked at.
    """

    def __init__(self, objective: PerSampleObjective, data: SupervisedData) -> None:
        self.objective, self.data = objective, data

    def after_validation(self, loop: Training, evaluation: Evaluation) -> None:
        """Record both."""
        objective = self.objective
        objective.prepare()
        assert objective.plan is not None
        batch = self.data.take(self.data.splits["validation"][:_SAMPLES], device=loop.device)
        how: Any = {"chunk_size": objective.plan.chunk_size, "method": objective.method}
        how |= {"clipping": objective.clipping, "groups": objective.groups}
        objective.model.train()
        found = clipping_bias(
            objective.loss, loop.params, tuple(batch), max_norm=objective.max_norm, **how
        )
        numbers = {
            "validation/clipping_cosine": float(found.cosine),
            "validation/clipping_norm_ratio": float(found.norm_ratio),
        }
        loop.tracker.scalars(loop.step, numbers)
