"""The gradient through the graph of all steps at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Pull, Values
from metalearn.core.hyper.results import HyperGradient, RunEnd, detached, result_of
from metalearn.core.hyper.run import Run
from metalearn.core.tree import flatten, tree_map, unflatten

__all__ = ["outer_gradient", "unrolled"]


def unrolled(run: Run) -> HyperGradient:
    """One backward pass through the run."""
    learnt, spec = flatten(run.loop.optimizer.learnt)
    kept: dict[str, Any] = {}

    def objective(inputs: Values) -> Tensor:
        values = inputs[: len(run.start)]
        loop = run.loop.with_learnt(unflatten(inputs[len(run.start) :], spec))
        state, losses = run.state, []
        for k in range(run.steps):
            values, state, loss = loop.step(values, state, loop.batch(run.batches, k))
            losses.append(loss)
        kept["end"] = tree_map(detached, (values, state, torch.stack(losses)))
        return run.outer(values)

    loss, grads = _gradient(run, lambda x: [objective(x)], [*run.start, *learnt])
    values, state, losses = kept["end"]
    count = len(run.start)
    end = RunEnd(values, state, loss, losses)
    return result_of(run, grads[:count], unflatten(grads[count:], spec), end, {})


def outer_gradient(run: Run, values: Values) -> tuple[Tensor, Values]:
    """The outer loss of given leaves, and its gradient of all of them, ``[R, ...]`` of R."""
    return _gradient(run, lambda values: [run.reached(run.outer(values))], values)


def _gradient(run: Run, function: Any, inputs: Values) -> tuple[Tensor, Values]:
    """Of one loss, or of each of R."""
    backend = run.loop.backend
    (loss,), pull = backend.value_and_pull(function, inputs)
    if not loss.dim():
        return loss, pull([torch.ones_like(loss)])
    many: Pull = backend.pull_many(function, inputs)
    return loss, many([torch.eye(len(loss), dtype=loss.dtype, device=loss.device)])
