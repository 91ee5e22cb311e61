"""What the tests of members that stop, diverge and resume are built from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metalearn import Ensemble
from metalearn.trainers import EnsembleTrainer
from metalearn.trainers.loop.protocols import Evaluation
from metalearn.trainers.loop.step import StepGradient
from tests.support.alone import conv_network, mlp_network
from tests.support.builders import after_gradient, after_validation, extra_state

STEADY: dict[str, Any] = {"schedule": "constant", "eval_every": 2, "steps": 8}


def rows_of(trainer: EnsembleTrainer, index: int) -> dict[str, Tensor]:
    """A member's tensors, copied; which masks are drawn next is nobody's own."""
    state = trainer.ensemble.member(index).state_dict()
    return {name: value for name, value in state.items() if not name.endswith(".draw")}


def member_state(trainer: EnsembleTrainer) -> dict[str, Any]:
    """All that a run of members has come to."""
    return {
        "module": dict(trainer.module.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "best": dict(trainer.loop.population.best),
        "extra": {k: v for k, v in extra_state(trainer).items() if k != "plan"},
        "step": trainer.step,
        "best_step": trainer.best_step,
        "best_value": trainer.best_value,
    }


def scripted(trainer: EnsembleTrainer, scores: Sequence[Sequence[float]]) -> None:
    """Validation i finds member m at ``scores[i][m]``, whatever its weights are."""

    def change(found: Evaluation) -> Evaluation:
        done = -(-trainer.step // trainer.settings.eval_every)
        return replace(found, scores=torch.tensor(scores[min(done, len(scores) - 1)]))

    after_validation(trainer, change)


def poisoned(trainer: EnsembleTrainer, members: Sequence[int], step: int, *, loss: bool) -> None:
    """The gradient (or the loss as well) of some members is NaN at a step."""

    def spoil(current: int, found: StepGradient) -> None:
        for index in members if current == step else ():
            stack, row = trainer.ensemble.place(index)
            number = list(trainer.ensemble.stacks).index(stack)
            for name, grad in found.grads.items():
                if name.startswith(f"stacks.{number}."):
                    grad[row] = math.nan
            if loss:
                found.losses[index] = math.inf

    after_gradient(trainer, spoil)


def after_recording(trainer: EnsembleTrainer, act: Callable[[], object]) -> None:
    """Make something happen after each validation has been taken note of."""
    population = trainer.loop.population
    original = population.record_validation

    def record(scores: Tensor, step: int) -> bool:
        better = original(scores, step)
        act()
        return better

    population.record_validation = record  # type: ignore[method-assign]


def mixed_networks() -> Ensemble:
    makes = [conv_network, mlp_network, conv_network, mlp_network]
    return Ensemble.from_modules([make(seed) for seed, make in enumerate(makes)])
