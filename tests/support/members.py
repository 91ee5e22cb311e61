"""What the tests of members that stop, diverge and resume are built from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn import Ensemble
from metalearn.trainers import EnsembleTrainer
from tests.support.alone import conv_network, mlp_network

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
        "best": dict(trainer._best),
        "extra": {k: v for k, v in trainer.extra_state().items() if k != "plan"},
        "step": trainer.step,
        "best_step": trainer.best_step,
        "best_value": trainer.best_value,
    }


def scripted(trainer: EnsembleTrainer, scores: Sequence[Sequence[float]]) -> None:
    """Validation i finds member m at ``scores[i][m]``, whatever its weights are."""

    def member_scores() -> Tensor:
        done = -(-trainer.step // trainer.settings.eval_every)
        return torch.tensor(scores[min(done, len(scores) - 1)])

    trainer.member_scores = member_scores  # type: ignore[method-assign]


def poisoned(trainer: EnsembleTrainer, members: Sequence[int], step: int, *, loss: bool) -> None:
    """The gradient (or the loss as well) of some members is NaN at a step."""
    gradient = trainer.gradient

    def broken(current: int) -> Any:
        report = gradient(current)
        if current == step:
            for index in members:
                stack, row = trainer.ensemble.place(index)
                number = list(trainer.ensemble.stacks).index(stack)
                for name, grad in report.grads.items():
                    if name.startswith(f"stacks.{number}."):
                        grad[row] = math.nan
                if loss:
                    report.member_losses[index] = math.inf
        return report

    trainer.gradient = broken  # type: ignore[method-assign]


def mixed_networks() -> Ensemble:
    makes = [conv_network, mlp_network, conv_network, mlp_network]
    return Ensemble.from_modules([make(seed) for seed, make in enumerate(makes)])
