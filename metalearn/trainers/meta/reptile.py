"""Reptile: the starting point moves towards where inner loops end.

Axes: K inner steps.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from metalearn.core import Method
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.settings import MAML

__all__ = ["Reptile"]


class Reptile(MetaLearner):
    """A `MetaLearner` whose outer gradient is θ − φ_K, the mean over tasks, with φ_0 = θ.

    An outer step of gradient descent with step size ε is the paper's θ ← θ + ε · mean(φ_K − θ).
    Nothing is differentiated but the support loss, by the inner loop; the query set of a training
    task has no part in the gradient, and its loss is for the record. With K = 1 and inner gradient
    descent of step size α the gradient is α ∇L(θ, support): all tasks trained on jointly.

    Args:
        module: as for `MetaLearner`.
        maml: as for `MetaLearner`, with at least one inner step; ``method`` is reptile, nothing of
            the inner loop is learnt and no parameter is left out of it, as it would not be learnt.
        kind: as for `MetaLearner`.

    Raises:
        SettingError: as `MetaLearner`; settings of ``maml`` that contradict.

    Source: Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018. The paper
    trains on more shots than it tests with, by Adam with β1 = 0 on minibatches of the support set
    (``inner_optimizer``, ``inner_betas``, ``support_batch``). Its code shuffles a task's samples
    anew each time they are gone through and keeps Adam's second moments from task to task; here
    their order is fixed and each task starts with moments of zero.
    """

    method: ClassVar[Method] = "reptile"
    """Of ``maml``, which is fixed."""

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
    ) -> None:
        super().__init__(module, (maml or MAML()).by_method(self.method), kind=kind)
