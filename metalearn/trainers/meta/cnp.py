"""Conditional neural processes: a task is the mean of what an encoder makes of its examples.

Axes: T tasks, B queries, R entries of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from metalearn.core import Engine
from metalearn.errors import SettingError
from metalearn.models import NeuralProcess
from metalearn.random_streams import check_seed
from metalearn.signatures import checked
from metalearn.trainers.meta.conditioned import Conditioned, ConditionedLearner
from metalearn.trainers.meta.wrapping import wrapped
from metalearn.types import Batch, Params

__all__ = ["ConditionalNeuralProcess"]


class ConditionalNeuralProcess(ConditionedLearner):
    """Predictions g(x, r) with r = 1/N Σ_i h(x_i, y_i) of the support set; for regression.

    There is no inner loop. The network given is g, and `metalearn.models.NeuralProcess` is put
    around it: `learner.module`. The loss is the mean squared error as of all learners, which is the
    Gaussian likelihood with one variance; with ``variance`` training descends the Gaussian negative
    log-likelihood, mean of ½ (log v + (y − m)² / v), of a variance v for each value, and
    validation and test go on scoring the means by their squared error.

    Args:
        module: maps inputs ``[N, ...]`` to values, by linear layers; a `NeuralProcess`, or an
            `Ensemble` of them, is taken as it is.
        kind: ``"regression"``.
        representation: R.
        hidden: units of the hidden layers of h.
        variance: train a variance too.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        chunk_size: tasks at a time; None takes a whole meta-batch.
        seed: of the weights of h; members add their number.

    Raises:
        SettingError: a value out of range, tasks of classification, a network of other layers.

    Source: Garnelo et al., "Conditional Neural Processes", ICML 2018. The paper's code bounds the
    standard deviation from below by 0.1 and trains on support samples as queries too; here it is
    unbounded (a log-variance), and the task says what its queries are.
    """

    name = "cnp"

    @checked
    def __init__(
        self,
        module: nn.Module,
        *,
        kind: Literal["classification", "regression"] = "regression",
        representation: int = 64,
        hidden: Sequence[int] = (64, 64),
        variance: bool = False,
        engine: Engine = "auto",
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if kind == "classification":  # before the network is looked at, which may be of pictures
            accepted = "a conditional neural process needs tasks of regression"
            raise SettingError("kind", kind, accepted)
        check_seed(seed)

        def around(network: nn.Module, index: int) -> NeuralProcess:
            return NeuralProcess(
                network,
                representation=representation,
                hidden=hidden,
                variance=variance,
                seed=seed + index,
            )

        made = wrapped(module, NeuralProcess, around)
        super().__init__(made, kind=kind, engine=engine, chunk_size=chunk_size)
        self.variance = "spread" in {name.split(".")[0] for name in self.names}

    def predict(self, state: Conditioned, inputs: Tensor) -> Tensor:
        """Means ``[B, outputs]``."""
        outputs = super().predict(state, inputs)
        return outputs[..., 0] if self.variance else outputs

    def task_loss(self, params: Params, support: Batch, query: Batch) -> Tensor:
        """Mean squared error of the means, or the Gaussian negative log-likelihood."""
        if not self.variance:
            return super().task_loss(params, support, query)
        inputs, targets = query
        means, logs = super().predict(Conditioned(params, *support), inputs).unbind(-1)
        self.criterion(means, targets)  # for its refusals
        loss: Tensor = 0.5 * (logs + (targets - means).square() * (-logs).exp()).mean()
        return loss
