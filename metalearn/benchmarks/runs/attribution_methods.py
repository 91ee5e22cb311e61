"""This library's methods of attribution, as they are raced; each gives a row for each target.

Axes: N examples, R targets, M subsets, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.attribution import (
    conjugate_gradient_influence,
    exact_scores,
    kronecker_influence,
    retrain_subsets,
    tracin_scores,
    trak_scores,
)
from metalearn.benchmarks.runs.attribution_problem import AttributionProblem
from metalearn.core import fisher_kfac, functionalize

__all__ = [
    "exact",
    "influence",
    "kronecker",
    "retraining",
    "tracin",
    "training",
    "trak",
]

Run = Callable[[], Tensor]
CG_ITERATIONS = 50


def training(problem: AttributionProblem) -> Run:
    """One training by `retrain_subsets`, of all examples: the targets' logits ``[R, C]``."""
    data, targets = problem.data, problem.samples
    everything = torch.ones(1, problem.weights.shape[1])
    how: Any = problem.settings
    return lambda: retrain_subsets(problem.network, data, everything, targets, **how).outputs[0]


def retraining(problem: AttributionProblem) -> Run:
    """M subsets as one stack: the targets' losses ``[R, M]``."""
    data, targets, weights = problem.data, problem.samples, problem.weights
    how: Any = problem.settings
    return lambda: retrain_subsets(problem.network, data, weights, targets, **how).losses.T


def exact(problem: AttributionProblem) -> Run:
    """Through every step of the run; the check by two further runs is left out."""
    run = problem.run
    return lambda: exact_scores(run, problem.samples, check=False).scores


def influence(problem: AttributionProblem) -> Run:
    """Conjugate gradients on the damped Hessian, all targets at once."""
    params, pair = problem.trained, _pair(problem)
    loss, _ = _functions(problem)
    how: Any = {"damping": problem.damping, "iterations": CG_ITERATIONS}
    return lambda: conjugate_gradient_influence(loss, params, **pair, **how).scores


def kronecker(problem: AttributionProblem) -> Run:
    """Factors of the empirical Fisher matrix with corrected eigenvalues, and the scores."""
    params, pair, network = problem.trained, _pair(problem), problem.network
    loss, _ = _functions(problem)
    how: Any = {"likelihood": "categorical", "kind": "empirical", "corrected": True}

    def scores() -> Tensor:
        fisher = fisher_kfac(network, params, pair["examples"], **how)
        return kronecker_influence(loss, params, **pair, fisher=fisher, damping=problem.damping)

    return scores


def tracin(problem: AttributionProblem) -> Run:
    """Whole gradients at states along the run."""
    (states, rates), pair = problem.states, _pair(problem)
    loss, _ = _functions(problem)
    return lambda: tracin_scores(loss, states, **pair, learning_rates=rates)


def trak(problem: AttributionProblem, *, seed: int = 0) -> Run:
    """Of one network."""
    params, pair = problem.trained, _pair(problem)
    _, outputs = _functions(problem)
    how: Any = {"size": problem.projection, "seed": seed}
    return lambda: trak_scores(outputs, [params], **pair, **how)


def _pair(problem: AttributionProblem) -> dict[str, Any]:
    return {"targets": problem.samples, "examples": problem.data.part("train")}


def _functions(problem: AttributionProblem) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The mean loss of a batch, and logits."""
    apply, _, buffers = functionalize(problem.network)

    def outputs(params: Any, inputs: Tensor) -> Tensor:
        logits: Tensor = apply(params, buffers, inputs)
        return logits

    def loss(params: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(outputs(params, batch[0]), batch[1])

    return loss, outputs
