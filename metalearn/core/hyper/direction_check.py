"""Whether a gradient through a run is what the run does: two runs a little apart, as one stack.

Axes: R outer losses, S spacings of two runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.backend import Functional, Values
from metalearn.core.checks import check_number
from metalearn.core.hyper.results import HyperGradient
from metalearn.core.hyper.run import Loss, Run, run_of
from metalearn.core.loss_checks import outside_inference_mode
from metalearn.core.meta.adapted_task import walk
from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.random_tensors import signs
from metalearn.core.tree import check_floating, flatten, leaves, unflatten
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, Params

__all__ = ["DirectionCheck", "check_hyper_gradient"]

_SURELY = 0.01  # an error that no other spacing is asked about
_FURTHER = (10.0, 0.1, 0.01)  # times the first spacing


@dataclass(frozen=True)
class DirectionCheck:
    """A derivative along a random direction: by the gradient, and by two runs."""

    predicted: Tensor
    """The gradient's, a scalar or ``[R]``."""
    measured: Tensor
    """(L_out(h + ε·d) − L_out(h − ε·d)) / 2ε."""
    size: Tensor
    """The larger of both, and of the root mean square that the gradient has along such directions,
    which a sum that happens to cancel does not lower."""
    spacing: float
    """ε: of those that were tried, the one at which both differ least."""
    tried: dict[float, float] = field(default_factory=dict)
    """`error` at every ε that was tried."""
    spread: float = 0.0
    """By how much of its size what is measured changes from one ε to the next, at the least: small
    where two runs say what the slope is, and a gradient that differs is wrong; large where they do
    not, since the run has kinks or is chaotic."""

    @property
    def errors(self) -> Tensor:
        """``abs(predicted − measured) / size``, a scalar or ``[R]``.

        Where an outer loss hardly depends on what is moved, this is the rounding of the runs.
        """
        tiny = torch.finfo(self.size.dtype).tiny
        return (self.predicted - self.measured).abs() / self.size.clamp_min(tiny)

    @property
    def error(self) -> float:
        """Of all outer losses together: ‖predicted − measured‖ / ‖size‖."""
        tiny = torch.finfo(self.size.dtype).tiny
        return float((self.predicted - self.measured).norm() / self.size.norm().clamp_min(tiny))

    def agrees(self, tolerance: float = 0.05) -> bool:
        """Whether `error` is no larger; never where it is not finite."""
        return self.error <= tolerance

    def __str__(self) -> str:
        """One line for a log."""
        sentence = (
            f"along a random direction the gradient and two runs differ by {self.error:.2g} of "
            "its size"
        )
        rest = [f"{e:.2g} at {s:.1g}" for s, e in self.tried.items() if s != self.spacing]
        if not rest:
            return sentence
        return f"{sentence} at a spacing of {self.spacing:.1g}, {', '.join(rest)}"


@outside_inference_mode
@checked
def check_hyper_gradient(
    found: HyperGradient,
    inner_loss: Loss,
    outer_loss: Loss,
    params: Params,
    hyper: Any,
    inner_batches: Any,
    outer_batch: Batch,
    *,
    optimizer: InnerOptimizer,
    steps: int | None = None,
    frozen: str | Sequence[str] | None = None,
    state: Any = None,
    generator: torch.Generator,
    spacing: float | None = None,
    stacked: bool = True,
) -> DirectionCheck:
    """Compare a gradient with two runs, at h ± ε·d.

    The direction d has in every element of ``hyper``, and of what the optimiser learns, the root
    mean square of its leaf (1 where that is 0) with a random sign; where there is neither, in the
    initial parameters. A run whose curvature is too large for its rate, or a precision that is too
    low for its length, shows here: then the gradient is that of rounding errors.

    Where both differ at the first ε, others are tried, ten times as large, a tenth and a hundredth:
    rounding is met by a larger one, a slope that bends within the first by a smaller. Kinks are
    another matter: inner gradients of ReLU networks jump, and at an ε that crosses kinks the runs
    differ from what the gradient, exact between two kinks, foretells. So do elements whose
    gradients are nearly 0 under Adam, whose step turns its sign within a small ε.

    ``found`` is what `hyper_gradient` gave for the arguments that both have; ``generator`` draws
    the signs; ``spacing`` is the only ε, None begins with the cube root of the precision of
    ``hyper``, 5e-3 in float32.
    Both runs are one stack by ``vmap``, or with ``stacked=False`` one after the other.

    Raises:
        SettingError: what `hyper_gradient` refuses; a gradient of other trees.
    """
    run = run_of(
        inner_loss, outer_loss, params, hyper, inner_batches, outer_batch,
        optimizer=optimizer, steps=steps, frozen=frozen, state=state,
    )  # fmt: skip
    values, grads = _of_interest(run, found)
    direction = [_scale(v) * signs(v.shape, v, generator) for v in values]
    lead = found.loss.shape
    parts = [(g * d).reshape(*lead, -1) for g, d in zip(grads, direction)]

    def at(*spacings: float) -> list[DirectionCheck]:
        ends = _ends(run, direction, spacings, stacked=stacked)
        return [_compared(parts, pair[0], pair[1], s) for pair, s in zip(ends, spacings)]

    if spacing is not None:
        check_number("spacing", spacing, above=0)
        return at(spacing)[0]
    first = torch.finfo(values[0].dtype).eps ** (1 / 3)
    tried = at(first)
    if not tried[0].agrees(_SURELY):
        tried += at(*(factor * first for factor in _FURTHER))
    return _nearest(tried)


def _compared(parts: Values, above: Tensor, below: Tensor, spacing: float) -> DirectionCheck:
    """Products of gradients and direction, ``[..., n]`` of each leaf, beside two runs' losses."""
    measured = (above - below) / (2 * spacing)
    predicted = torch.stack([p.sum(-1) for p in parts]).sum(0)
    typical = torch.stack([(p * p).sum(-1) for p in parts]).sum(0).sqrt()
    size = torch.maximum(torch.maximum(predicted.abs(), measured.abs()), typical)
    return DirectionCheck(predicted, measured, size, spacing)


def _nearest(tried: Sequence[DirectionCheck]) -> DirectionCheck:
    """The one with the least error, and what the others say."""
    finite = [check for check in tried if math.isfinite(check.error)]
    best = min(finite, key=lambda check: check.error, default=tried[0])
    rows = sorted(tried, key=lambda check: -check.spacing)
    changes = [
        float((a.measured - b.measured).norm() / torch.maximum(a.size, b.size).norm())
        for a, b in pairwise(rows)
    ]
    spread = min((c for c in changes if math.isfinite(c)), default=0.0)
    return replace(best, tried={check.spacing: check.error for check in tried}, spread=spread)


def _of_interest(run: Run, found: HyperGradient) -> tuple[Values, Values]:
    """What is moved, and its gradients."""
    learnt = leaves(run.loop.optimizer.learnt)
    shaping = run.start[run.count :]
    values = [*shaping, *learnt] or run.start[: run.count]
    trees = (found.hyper_grads, found.optimizer_grads) if shaping or learnt else (found.grads,)
    check_floating([found.loss, *trees], "found")
    grads = [g for tree in trees for g in leaves(tree)]
    lead = found.loss.shape
    if len(lead) > 1 or [g.shape for g in grads] != [(*lead, *v.shape) for v in values]:
        accepted = "what hyper_gradient gave for these arguments is needed"
        raise SettingError("found", [list(g.shape) for g in grads], accepted)
    return values, grads


def _ends(run: Run, direction: Values, spacings: Sequence[float], *, stacked: bool) -> Tensor:
    """The outer losses of two runs for each spacing, ``[S, 2]`` or ``[S, 2, R]``."""
    loop = replace(run.loop, backend=Functional()) if stacked else run.loop
    learnt, spec = flatten(loop.optimizer.learnt)
    shaping = run.start[run.count :]

    def end(shift: Tensor) -> Tensor:
        moved = iter([shift.to(d.dtype) * d for d in direction])
        if shaping or learnt:
            values = [*run.start[: run.count], *(v + next(moved) for v in shaping)]
        else:
            values = [v + next(moved) for v in run.start]
        own = loop.with_learnt(unflatten([v + next(moved) for v in learnt], spec))
        for point in walk(own, values, run.batches, run.steps, state=run.state):
            values = point.values
        return run.outer(values)

    shifts = direction[0].new_tensor([[spacing, -spacing] for spacing in spacings])
    if stacked:
        ends: Tensor = torch.vmap(end, randomness="same")(shifts.flatten())
    else:
        ends = torch.stack([end(shift).detach() for shift in shifts.flatten()])
    return ends.detach().view(*shifts.shape, *ends.shape[1:])


def _scale(value: Tensor) -> Tensor:
    """The root mean square, 1 where that is 0."""
    size = value.square().mean().sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))
