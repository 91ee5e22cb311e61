"""Exact scores: through the whole run that made a network.

Axes: K steps, N training examples, R targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution.training_run import TrainingRun
from metalearn.core import (
    DirectionCheck,
    HyperGradient,
    HyperProgress,
    check_hyper_gradient,
    hvp,
    hyper_gradient,
    top_eigenvalues,
)
from metalearn.errors import check_whole
from metalearn.signatures import checked

__all__ = ["ExactScores", "RunCurvature", "exact_scores", "run_curvature"]

_SPREAD = 0.05  # of what two runs say, beyond which they do not tell a slope


@dataclass(frozen=True)
class ExactScores:
    """What `exact_scores` gives."""

    scores: Tensor
    """``[R, N]``, in units of the loss: −∂ℓ_r(θ_K)/∂w_i, the rise of a target's loss when an
    example's weight falls by 1, to first order; as when it is left out whose weight was 1."""
    gradient: HyperGradient
    """Of which they are; also that of the step sizes and of the initial parameters."""
    check: DirectionCheck | None
    """Against two runs."""

    @property
    def warning(self) -> str:
        """Why the scores should not be trusted; empty where nothing speaks against them."""
        if not bool(self.scores.isfinite().all()):
            return "scores are not finite: the gradient explodes on its way back through the run"
        if self.check is None or self.check.agrees():
            return ""
        if self.check.spread > _SPREAD:
            reason = "what the runs do depends on how far they are apart, as with kinks of ReLU"
            instead = "train with a smooth activation, such as GELU"
        else:
            reason = "the runs agree with each other, so the gradient has lost its precision"
            instead = "train for fewer steps"
        return f"{self.check}: {reason}; do not rely on these scores: {instead}"


@checked
def exact_scores(
    run: TrainingRun,
    targets: tuple[Tensor, Tensor],
    *,
    memory: str | int | None = None,
    check: bool = True,
    generator: torch.Generator | None = None,
    kept: MutableMapping[int, Any] | None = None,
    progress: Callable[[HyperProgress], Any] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> ExactScores:
    """Scores of all examples for all targets, by the gradient through every step of the run.

    Args:
        run: from `training_run`.
        targets: inputs ``[R, ...]`` and targets of R samples.
        memory: see `metalearn.core.hyper_gradient`, as for ``kept``, ``progress``, ``resume``.
        check: compare with two runs whose weights are a little to either side, see
            `metalearn.core.check_hyper_gradient`.
        generator: of the check's direction; None begins one with seed 0.
        kept: see there.
        progress: see there.
        resume: see there.

    Raises:
        SettingError: targets that do not fit the network, and what `hyper_gradient` refuses.
    """
    arguments = run.arguments(targets)
    walk: dict[str, Any] = {"kept": kept, "progress": progress, "resume": resume}
    found = hyper_gradient(**arguments, memory=memory, **walk)
    report = None
    if check:
        generator = generator or torch.Generator().manual_seed(0)
        report = check_hyper_gradient(found, **arguments, generator=generator)
    return ExactScores(-found.hyper_grads, found, report)


@dataclass(frozen=True)
class RunCurvature:
    """How curved the losses of steps are, beside how far the steps go."""

    steps: list[int]
    """k."""
    eigenvalues: list[float]
    """The largest of the Hessian of step k's loss."""
    rates: list[float]
    """η_k. Plain descent along a direction of curvature λ is stable below η·λ = 2; beyond it, small
    differences grow from step to step, and gradients through the run with them."""


@checked
def run_curvature(
    run: TrainingRun,
    *,
    places: int = 8,
    iterations: int = 12,
    generator: torch.Generator | None = None,
) -> RunCurvature:
    """The largest eigenvalue of the Hessian along a run, by Lanczos, at so many of its steps.

    Args:
        run: from `training_run`; it is made again, without its gradient.
        places: how many steps, spread evenly, the first and the last among them.
        iterations: of Lanczos.
        generator: of its first vectors; None begins one with seed 0.

    Raises:
        SettingError: fewer than one place or iteration.
    """
    check_whole("places", places, 1)
    generator = generator or torch.Generator().manual_seed(0)
    chosen = spread_steps(run.steps - 1, places)
    found = []
    for k, params in run.states(chosen):
        batch = run.batch(k)

        def product(vector: Any, params: Any = params, batch: Any = batch) -> Any:
            return hvp(lambda p: run.inner_loss(p, run.weights, batch), params, vector)

        how: Any = {"count": 1, "iterations": iterations, "generator": generator}
        top = top_eigenvalues(product, params, **how)
        found.append(float(top.values[0]))
    return RunCurvature(chosen, found, [float(run.rates[k]) for k in chosen])


def spread_steps(last: int, count: int) -> list[int]:
    """At most ``count`` whole numbers from 0 to ``last``, evenly, both ends among them."""
    if count == 1 or last == 0:
        return [last]
    return sorted({round(last * i / (count - 1)) for i in range(count)})
