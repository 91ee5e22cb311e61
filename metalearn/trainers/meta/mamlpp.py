"""MAML++: what makes MAML stable, each part with a switch of its own.

Axes: K inner steps.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from metalearn.core import Engine, InnerOptimizer, task_meta_gradients
from metalearn.core.module.norms import norm_parameters
from metalearn.core.module.step_norms import step_norms, with_step_norms
from metalearn.core.tree import match_names
from metalearn.errors import SettingError, check_whole
from metalearn.models import Ensemble
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.network import LearnerNetwork, network_of
from metalearn.trainers.meta.settings import MAML, with_learnt_rates
from metalearn.trainers.meta.step_statistics import (
    StepwiseNetwork,
    moved_step_statistics,
    with_fixed_statistics,
)
from metalearn.types import Params, TaskBatch

__all__ = ["MAMLPlusPlus", "annealed_weights"]

_LEAST = 0.03
"""What is left of a weight of 1/K when its annealing ends."""


class MAMLPlusPlus(MetaLearner):
    """MAML with a multi-step loss, annealed order of derivatives, step sizes and norms by step.

    A training step descends Σ_k w_k · L(θ_k, query) with k = 1 … K and `annealed_weights`. Scores
    are those of MAML. All that is switched off leaves MAML as it is.

    Args:
        module: as for `MetaLearner`.
        maml: as for `MetaLearner`; K = ``inner_steps`` of at least 1, and no implicit method.
        kind: as for `MetaLearner`.
        multi_step_steps: training steps over which the weights go to the last query loss; None
            descends that alone from the start.
        first_order_steps: training steps at the beginning that leave out second derivatives.
        learn_rates: each parameter has a step size of its own in each inner step, which starts at
            ``maml.inner_lr`` and is learnt (``maml.learn=[lr]``,
            ``maml.lr_per=parameter_and_step``); False leaves both to ``maml``.

        affine_per_step: scales and shifts of normalisation layers are not adapted; they have a
            learnt value after each inner step, γ_k = γ_0 + d_k, of which d_1 … d_K are entries
            ``learnt.offset.<parameter>`` ``[K, ...]`` that start at 0. Steps after the K-th take
            the last.
        statistics_per_step: batch norms normalise by running statistics of each state θ_0 … θ_K,
            in training and in scores, which are inductive by themselves. Within a step they are
            constants; after it those of θ_k move towards the means over its tasks. For one network,
            not for members.

    Raises:
        SettingError: as `MetaLearner`; a value out of range, settings of ``maml`` that contradict;
            a network without such layers.

    Source: Antoniou, Edwards and Storkey, "How to Train Your MAML", ICLR 2019. The paper has a step
    size for each layer and inner step, where here weight and bias have each their own. Its cosine
    annealing of the outer step size is ``trainer.schedule=cosine``. Here the support loss and the
    query losses at θ_k share γ_k; in the paper's code a query loss at θ_{k+1} has γ_k too. That
    code keeps running statistics of each step but normalises by the batch at hand throughout; here
    they take its place, as in the paper's text.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        multi_step_steps: int | None = 100,
        first_order_steps: int = 0,
        learn_rates: bool = True,
        affine_per_step: bool = False,
        statistics_per_step: bool = False,
    ) -> None:
        if multi_step_steps is not None:
            check_whole("multi_step_steps", multi_step_steps, 1)
        check_whole("first_order_steps", first_order_steps, 0)
        maml = maml or MAML()
        _check_inner(maml, first_order_steps)
        self.multi_step_steps, self.first_order_steps = multi_step_steps, first_order_steps
        self.affine_per_step, self.statistics_per_step = affine_per_step, statistics_per_step
        if learn_rates:
            otherwise = "; learner.learn_rates=false leaves it open"
            maml = with_learnt_rates(maml, "parameter_and_step", otherwise=otherwise)
        if statistics_per_step:
            module = _with_statistics(module, maml)
        super().__init__(module, maml, kind=kind)

    @staticmethod
    def network_for(module: nn.Module, engine: Engine) -> LearnerNetwork:
        """The network, of which a task's parameters may have statistics among them."""
        found: Any = network_of(module, engine)
        if step_norms(module):
            found = StepwiseNetwork(found)
        network: LearnerNetwork = found
        return network

    @property
    def frozen(self) -> str | Sequence[str] | None:
        """As of `MetaLearner`; patterns do not hold statistics."""
        given = super().frozen
        if not self.statistics_per_step:
            return given
        own = {n: p for n, p in self.network.own(self.params).items() if n not in self._moments}
        fixed = match_names(own, given, "maml.frozen")
        return [glob.escape(name) for name, still in zip(own, fixed) if still] or None

    def adapting(self) -> list[str]:
        """As of `MetaLearner`, statistics not among them."""
        return [name for name in super().adapting() if name not in self._moments]

    def optimizer_at(self, params: Params) -> InnerOptimizer:
        """As of `MetaLearner`; it moves statistics too."""
        found = super().optimizer_at(params)
        if isinstance(self.network, StepwiseNetwork):
            return self.network.by_step(found)
        return found

    def task_gradients(self, params: Params, tasks: TaskBatch, *, step: int = 0) -> Params:
        """As of `MetaLearner`, without those of statistics."""
        if not isinstance(self.network, StepwiseNetwork):
            return super().task_gradients(params, tasks, step=step)
        settings = {**self.gradient_settings(step), "optimizer": self.optimizer_at(params)}
        del settings["chunk_size"]
        own = self.network.own(params)
        found = task_meta_gradients(self.loss, own, tasks, with_learnt=True, **settings)
        return self.network.learnt_alone(*found)

    def as_module(self, module: nn.Module, state: Params) -> nn.Module:
        """As of `MetaLearner`, with the statistics of a state where there are some."""
        return with_fixed_statistics(super().as_module(module, state), state)

    def moved_buffers(self, params: Params, tasks: TaskBatch) -> dict[str, Tensor]:
        """Statistics after one more meta-batch; see `moved_step_statistics`."""
        if not self.statistics_per_step:
            return super().moved_buffers(params, tasks)
        (engine, chunk), loop = self.batching, self.scored(params, self.inner_steps)
        return moved_step_statistics(
            lambda values, inputs: self.apply(values, self.buffers, inputs),
            *loop,
            tasks,
            self.module,
            engine=engine,
            chunk_size=chunk,
        )

    @property
    def _moments(self) -> dict[str, Tensor]:
        """Running statistics of all states by the name of a buffer."""
        return self.network.moments if isinstance(self.network, StepwiseNetwork) else {}

    def gradient_settings(self, step: int = 0) -> dict[str, Any]:
        """As of `MetaLearner`, with the weights and the order of a training step.

        A plan is of the exact method; engine and chunks of it hold for first order too, which takes
        less memory.
        """
        settings = {**super().gradient_settings(step), "step_weights": self.weights_at(step)}
        if step < self.first_order_steps:
            settings["method"] = "first_order"
        return settings

    def trial_settings(self) -> dict[str, Any]:
        """Those of the first training step, but of the order of the later ones."""
        planned = {**super().gradient_settings(), "step_weights": self.weights_at(0)}
        if self.statistics_per_step:
            planned["optimizer"] = self.optimizer_at(self.params)
        return planned

    def stepwise(self) -> list[str]:
        """Scales and shifts of normalisation layers, where they have a value in each step."""
        if not self.affine_per_step:
            return []
        adapting, norms = self.adapting(), set(norm_parameters(self.module))
        found = [name for name in adapting if self.names[name] in norms]
        if not found or len(found) == len(adapting):
            accepted = "norm layers with scales or shifts are needed for affine_per_step=true"
            raise SettingError(
                "module", type(self.module).__name__, f"{accepted}, beside others that adapt"
            )
        return found

    def weights_at(self, step: int) -> list[float]:
        """w_0 … w_K of a training step, counted from 0; w_0 is 0."""
        if self.multi_step_steps is None or step >= self.multi_step_steps:
            return [0.0] * self.inner_steps + [1.0]
        return [0.0, *annealed_weights(step / self.multi_step_steps, self.inner_steps)]


def annealed_weights(done: float, count: int) -> list[float]:
    """w_1 … w_K at a share of the annealing that is done, in [0, 1); their sum is 1.

    w_k = max(1 − done, 0.03) / K for k < K, and w_K has the rest: all are 1/K at the start. This is
    the schedule of the paper's code, which takes its ``done`` = epoch / E at the start of each of E
    epochs; here it moves with every training step. After the annealing the last loss counts alone,
    in that code too.

    Args:
        done: of the annealing.
        count: K.
    """
    each = max(1 - done, _LEAST) / count
    return [each] * (count - 1) + [1 - (count - 1) * each]


def _with_statistics(module: nn.Module, maml: MAML) -> nn.Module:
    """A network that has running statistics of each inner step, refused where it cannot."""
    if isinstance(module, Ensemble):
        accepted = "one network is needed for statistics_per_step=true"
        raise SettingError("module", "Ensemble", f"{accepted}: members that adapt keep none")
    if maml.norm not in (None, "batch_stats"):
        accepted = "null or batch_stats is needed with statistics_per_step=true"
        raise SettingError("maml.norm", maml.norm, accepted)
    return with_step_norms(module, maml.inner_steps)


def _check_inner(maml: MAML, first_order_steps: int) -> None:
    """Refuse settings of the inner loop that leave nothing to this method, or contradict it."""
    if maml.of_the_end:
        accepted = "auto, reverse, mixed or first_order is needed with a multi-step loss"
        raise SettingError("maml.method", maml.method, accepted)
    if not maml.inner_steps:
        accepted = "at least 1 is needed for losses after inner steps"
        raise SettingError("maml.inner_steps", 0, accepted)
    if first_order_steps and maml.wanted_method == "first_order":
        accepted = "0 is needed with maml.first_order=true, which has no other order to go to"
        raise SettingError("first_order_steps", first_order_steps, accepted)
