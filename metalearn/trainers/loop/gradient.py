"""The gradient of a step, over as many batches as it is accumulated over.

Axes: M members, or 1; A batches of a step.
"""

from __future__ import annotations

from typing import Any

from metalearn.models import set_draw
from metalearn.trainers.loop.protocols import Training
from metalearn.trainers.loop.step import StepGradient, added

__all__ = ["step_gradient"]


def step_gradient(loop: Training, step: int) -> tuple[Any, StepGradient]:
    """The last batch of a step, and sums over all its batches, before ranks are summed.

    Step s has the batches s·A .. (s + 1)·A − 1, so that it is one of a batch A times as large, to
    rounding: each counts by its size, and noise is added once. Draws of dropout are each batch's
    own.
    """
    count = loop.settings.accumulate
    total: StepGradient | None = None
    batch: Any = None
    for index in range(step * count, (step + 1) * count):
        set_draw(loop.module, index)
        batch = loop.objective.batch(index)
        found = loop.objective.gradient(loop.params, batch, step=step)
        total = found if total is None else added(total, found)
    assert total is not None
    return batch, total
