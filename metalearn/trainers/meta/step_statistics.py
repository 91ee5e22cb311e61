"""Running statistics of batch norms for each inner step: moved by training, fixed within tasks.

Axes: T tasks, K inner steps, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core import (
    Adaptation,
    InnerOptimizer,
    MetaGradient,
    along_adaptation,
    meta_gradient,
)
from metalearn.core.meta.step_offsets import with_step_offsets
from metalearn.core.module.step_norms import Readings, reading_statistics, step_norms
from metalearn.trainers.meta.network import LearnerNetwork
from metalearn.types import Batch, LossFn, Params, TaskBatch

__all__ = ["StepwiseNetwork", "moved_step_statistics", "with_fixed_statistics"]

_KINDS = ("step_mean", "step_var")


class StepwiseNetwork:
    """A network with `StepNorm` layers, whose `own` parameters have the moments of θ_0 among them.

    No gradient moves these in the inner loop but `with_step_offsets`, to the moments of the next
    state, so that no engine has to know the number of a step; none is learnt.
    """

    def __init__(self, network: LearnerNetwork) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        if name == "_network":  # while it is copied
            raise AttributeError(name)
        return getattr(self._network, name)

    @property
    def moments(self) -> dict[str, Tensor]:
        """Those of all states by the name of a buffer, ``[K+1, C]``."""
        layers = step_norms(self._network.module)
        return {f"{n}.{kind}": getattr(m, kind) for n, m in layers.items() for kind in _KINDS}

    def own(self, params: Params) -> Params:
        """The parameters that a task has, with the moments that it starts with."""
        first = {name: value[0] for name, value in self.moments.items()}
        return {**self._network.own(params), **first}

    def by_step(self, optimizer: InnerOptimizer) -> InnerOptimizer:
        """An inner optimiser that moves the moments too, of which it learns nothing."""
        moments = self.moments.items()
        return with_step_offsets(optimizer, {n: value[1:] - value[0] for n, value in moments})

    def learnt_alone(self, grads: Params, optimizer_grads: Any) -> dict[str, Tensor]:
        """Gradients of parameters and of what an optimiser of `by_step` learns, as one dict."""
        learnt, moments = self._network.learnt, self.moments
        own = {name: grad for name, grad in grads.items() if name not in moments}
        return own if learnt is None else {**own, **learnt.gradients(optimizer_grads[0])}

    def adaptation_gradient(
        self,
        loss: LossFn,
        params: Params,
        tasks: TaskBatch,
        *,
        optimizer: InnerOptimizer,
        **how: Any,
    ) -> MetaGradient:
        """`metalearn.core.meta_gradient`, moments being constants."""
        learnt = self._network.learnt
        if learnt is not None and learnt.hyperparameters:
            optimizer = optimizer.with_learnt(learnt.tree(params))
        found = meta_gradient(
            loss, self.own(params), tasks, optimizer=self.by_step(optimizer), **how
        )
        return found._replace(
            grads=self.learnt_alone(found.grads, found.optimizer_grads),
            optimizer_grads=found.optimizer_grads[0],
        )


def moved_step_statistics(
    call: Any,
    start: Params,
    adaptation: Adaptation,
    tasks: TaskBatch,
    module: nn.Module,
    **how: Any,
) -> dict[str, Tensor]:
    """By the name of a buffer, the moments of all states after one more meta-batch, ``[K+1, C]``.

    Row k moves, by the momentum of its layer, towards the moments at θ_k over all tasks, support
    and query sets together: the variance is that within the sets and that of their means. For that
    the tasks adapt once more, in first order.

    Args:
        call: ``call(params, inputs)``, a forward pass.
        start: θ_0.
        adaptation: K inner steps from there.
        tasks: of the meta-batch.
        module: has the layers.
        how: ``engine`` and ``chunk_size``.
    """

    def visit(params: Params, support: Batch, query: Batch) -> dict[str, Tensor]:
        read: Readings = {}
        with reading_statistics(read):
            for inputs, _ in (support, query):
                call(params, inputs)
        return {
            str(key): torch.stack([torch.stack([m, v + m * m]) for m, v in pairs]).mean(0)
            for key, pairs in read.items()
        }

    found: Mapping[str, Tensor] = along_adaptation(
        visit,
        adaptation.loss,
        start,
        tasks,
        optimizer=adaptation.optimizer,
        steps=adaptation.steps,
        frozen=adaptation.frozen,
        **how,
    )
    moved: dict[str, Tensor] = {}
    for name, layer in step_norms(module).items():
        if str(layer.key) in found:
            mean, square = found[str(layer.key)].mean(0).unbind(1)
            for kind, value in zip(_KINDS, (mean, square - mean * mean)):
                moved[f"{name}.{kind}"] = torch.lerp(getattr(layer, kind), value, layer.momentum)
    return moved


def with_fixed_statistics(module: nn.Module, state: Params) -> nn.Module:
    """A module whose `StepNorm` layers have the moments of a state alone, ``[C]``."""
    for name, layer in step_norms(module).items():
        for kind in _KINDS:
            setattr(layer, kind, state[f"{name}.{kind}"].detach().clone())
    return module
