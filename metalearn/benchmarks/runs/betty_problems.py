"""Betty's engine for the gradient of one outer loss with respect to weights on examples.

Axes: K steps, N examples.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.benchmarks.runs.weighted_run import WeightedRun

__all__ = ["betty_gradient"]


class _Weights(nn.Module):
    """The upper problem's parameters."""

    def __init__(self, run: WeightedRun) -> None:
        super().__init__()
        self.weights = nn.Parameter(run.weights)

    def forward(self, rows: Tensor) -> Tensor:
        return self.weights


def betty_gradient(
    run: WeightedRun, kind: str, upper: Mapping[str, Any], lower: Mapping[str, Any]
) -> Callable[[], Tensor]:
    """``[1, N]``.

    Args:
        run: whose outer loss is a mean.
        kind: of the lower problem, ``"IterativeProblem"`` or ``"ImplicitProblem"``.
        upper: settings of the upper problem's ``Config``.
        lower: of the lower problem's.
    """
    library: Any = importlib.import_module("betty.problems")
    configs: Any = importlib.import_module("betty.configs")
    engine: Any = importlib.import_module("betty.engine")
    found: list[Tensor] = []

    class Upper(library.ImplicitProblem):  # type: ignore[misc]
        def training_step(self, batch: Any) -> Tensor:
            return run.target_loss(self.lower(batch[0]))

        def optimizer_step(self, *_: Any, **__: Any) -> None:
            (weights,) = self.trainable_parameters()
            found.append(weights.grad.detach().clone())

    class Lower(getattr(library, kind)):  # type: ignore[misc]
        def forward(self, inputs: Tensor) -> Any:
            if kind == "IterativeProblem":
                return self.fmodule(self.params, self.buffers, inputs)
            return self.module(inputs)

        def training_step(self, batch: Any) -> Tensor:
            (rows,) = batch
            loss = run.weighted(self.forward(run.examples[0][rows]), self.upper(rows), rows)
            penalty = sum(p.square().sum() for p in self.trainable_parameters())
            return loss + 0.5 * run.decay * penalty if run.decay else loss

    def gradient() -> Tensor:
        weights, network = _Weights(run), deepcopy(run.network)
        how = {"retain_graph": True}
        outer = Upper(
            "upper", configs.Config(**how, **upper), weights,
            torch.optim.SGD(weights.parameters(), lr=1.0), train_data_loader=[run.targets],
        )  # fmt: skip
        descent = torch.optim.SGD(network.parameters(), lr=run.rates[0], momentum=run.momentum)
        inner = Lower(
            "lower", configs.Config(**how, **lower, unroll_steps=len(run.rows)), network, descent,
            train_data_loader=[(rows,) for rows in run.rows],
        )  # fmt: skip
        steps = {"train_iters": len(run.rows), "valid_step": len(run.rows) + 1}
        links = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
        logging.disable(logging.INFO)
        engine.Engine([outer, inner], engine.EngineConfig(**steps), links).run()
        logging.disable(logging.NOTSET)
        return found.pop()[None]

    return gradient
