"""Running statistics of batch norms for each inner step: read in training, used in scores.

Axes: T tasks, K inner steps, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import Adaptation, along_adaptation
from metalearn.core.meta.step_offsets import with_step_offsets
from metalearn.core.module.norms import RunningNorm
from metalearn.core.module.step_norms import (
    Readings,
    StepNorm,
    fixed_statistics,
    reading_statistics,
    step_norms,
)
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["by_running_statistics", "moved_step_statistics", "with_fixed_statistics"]

_BUFFERS = ("step_mean", "step_var")


def by_running_statistics(
    start: Params, adaptation: Adaptation, norms: Mapping[str, StepNorm], still: Sequence[str]
) -> tuple[Params, Adaptation]:
    """A starting point and inner steps that normalise by the running statistics of each state.

    The moments of a state stand among its parameters, where no gradient moves them but
    `with_step_offsets`, so that nothing has to know the number of a step.

    Args:
        start: θ_0, a flat dict.
        adaptation: from there, by the statistics of the batch at hand.
        norms: the layers, by name.
        still: names of the parameters in ``start`` that do not adapt.
    """
    held = {
        f"{name}.{key}": getattr(layer, key).detach()
        for name, layer in norms.items()
        for key in _BUFFERS
    }

    def loss(params: Params, batch: Batch) -> Any:
        with fixed_statistics():
            return adaptation.loss(params, batch)

    offsets = {name: value[1:] - value[0] for name, value in held.items()}
    changed = replace(
        adaptation,
        loss=loss,
        optimizer=with_step_offsets(adaptation.optimizer, offsets),
        frozen=list(still) or None,
    )
    return {**start, **{name: value[0] for name, value in held.items()}}, changed


def moved_step_statistics(
    call: Any,
    start: Params,
    adaptation: Adaptation,
    tasks: TaskBatch,
    module: nn.Module,
    **how: Any,
) -> dict[str, Tensor]:
    """By the name of a buffer, the running statistics after one more meta-batch, ``[K+1, C]``.

    Row k moves, by the momentum of its layer, towards the mean over tasks and over support and
    query set of the moments at θ_k. For that the tasks adapt once more, in first order.

    Args:
        call: ``call(params, inputs)``, a forward pass by the statistics of the batch at hand.
        start: θ_0.
        adaptation: K inner steps from there.
        tasks: of the meta-batch.
        module: has the layers.
        how: ``engine`` and ``chunk_size``.
    """
    norms = step_norms(module)

    def visit(params: Params, support: Batch, query: Batch) -> dict[str, Tensor]:
        read: Readings = {}
        with reading_statistics(read):
            for inputs, _ in (support, query):
                call(params, inputs)
        return {
            f"{key}.{kind}": torch.stack([pair[place] for pair in pairs]).mean(0)
            for key, pairs in read.items()
            for place, kind in enumerate(_BUFFERS)
        }

    found = along_adaptation(
        visit,
        adaptation.loss,
        start,
        tasks,
        optimizer=adaptation.optimizer,
        steps=adaptation.steps,
        frozen=adaptation.frozen,
        **how,
    )
    return {
        f"{name}.{kind}": torch.lerp(
            getattr(layer, kind), found[f"{layer.key}.{kind}"].mean(0), float(layer.momentum or 0)
        )
        for name, layer in norms.items()
        for kind in _BUFFERS
        if f"{layer.key}.{kind}" in found
    }


def with_fixed_statistics(module: nn.Module, state: Params) -> nn.Module:
    """A module whose `StepNorm` layers have become `RunningNorm` with the moments of a state."""
    for name, layer in step_norms(module).items():
        fixed = RunningNorm(layer)
        fixed.running_mean.copy_(state[f"{name}.step_mean"])
        fixed.running_var.copy_(state[f"{name}.step_var"])
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, fixed.train(layer.training))
    return module
