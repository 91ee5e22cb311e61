"""ANIL: almost no inner loop; the head alone adapts."""

from __future__ import annotations

from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.checks import check_pair
from metalearn.core.meta.shared_part import LossInParts
from metalearn.trainers.meta.part_learner import PartLearner
from metalearn.trainers.meta.split_network import SplitNetwork, split_at_head
from metalearn.types import Batch, Params, TaskBatch

__all__ = ["ANIL"]


class ANIL(PartLearner):
    """MAML whose inner loop changes the head alone, in training and in validation.

    With θ = (body ψ, head w): w_{k+1} = w_k − α·∂L_support(ψ, w_k)/∂w, and the outer step descends
    L_query(ψ, w_K) in ψ and w_0. Of a network that is all head it is MAML. Where the network is a
    body and one linear layer after it, gradients take the body once for a task, not at each inner
    step: the same, but for rounding. Arguments and errors are those of `PartLearner`.

    Source: Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML", ICLR 2020.
    """

    adapts_head = True
    _modes: list[bool] | None = None
    """Which layers were in training mode when the network was last looked at."""

    def check(self, tasks: TaskBatch) -> None:
        """As of `MetaLearner`; a network that was not looked at is taken apart where it can be."""
        super().check(tasks)
        modes = [layer.training for layer in self.module.modules()]
        if modes == self._modes or self.maml.support_batch is not None or transforms_active():
            return
        self._modes = modes
        inputs, _ = check_pair(tasks.support)
        split = None
        if isinstance(inputs, Tensor):
            split = split_at_head(self.network, self.head, inputs[0])
        self.descended = self.loss if split is None else self._in_parts(split)

    def _in_parts(self, split: SplitNetwork) -> LossInParts:
        def features(params: Params, batch: Batch) -> Tensor:
            inputs, _ = check_pair(batch)
            return split.features(params, inputs)

        def rest(params: Params, batch: Batch, features: Tensor) -> Tensor:
            _, targets = check_pair(batch)
            return self.criterion(split.outputs(params, features), targets)

        return LossInParts(features, rest)
