"""The gradient of a step, over as many batches as it is accumulated over.

Axes: M members, or 1; A batches of a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch

from metalearn.core.precision import networks_in
from metalearn.models import set_draw
from metalearn.trainers.loop.protocols import Divisible, Training
from metalearn.trainers.loop.step import StepGradient, added

__all__ = ["TYPES", "batch_gradient", "step_gradient"]

TYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16}
"""By ``precision``, the type that networks are computed in, where it is not that of the weights."""


def step_gradient(loop: Training, step: int) -> tuple[Any, StepGradient]:
    """The last batch of a step, and sums over this rank's part of all its batches.

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
        alone = loop.ranks.count == 1
        with nullcontext(batch) if alone else cast(Divisible, loop.objective).part(batch) as mine:
            found = batch_gradient(loop, mine, step, TYPES.get(loop.settings.precision))
        total = found if total is None else added(total, found)
    assert total is not None
    return batch, total


def batch_gradient(
    loop: Training, batch: Any, step: int, dtype: torch.dtype | None
) -> StepGradient:
    """The gradient of one batch, its networks computed in a type; gradients as the weights are."""
    if dtype is None:
        return loop.objective.gradient(loop.params, batch, step=step)
    with networks_in(dtype):
        found = loop.objective.gradient(loop.params, batch, step=step)
    grads = {name: grad.to(loop.params[name].dtype) for name, grad in found.grads.items()}
    return replace(found, grads=grads)
