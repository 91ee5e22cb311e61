"""iMAML: the gradient at the end of an inner loop that is pulled back, not through its steps.

Axes: K inner steps.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from metalearn.core import Method
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.settings import MAML

__all__ = ["ImplicitMAML"]


class ImplicitMAML(MetaLearner):
    """A `MetaLearner` whose inner loop seeks φ(θ) = argmin L(φ, support) + λ/2 · ‖φ − θ‖².

    The meta-gradient is (I + H(φ)/λ)⁻¹ ∇L(φ, query) with H the Hessian of L(·, support), by
    conjugate gradients; see `metalearn.core.meta_gradient`. It takes the memory of one step,
    however many there are, and is exact as far as φ is the minimum and the system is solved.
    Gradient descent needs a step size below 2 / (λ + the largest curvature); with λ → ∞ and such
    step sizes the gradient is that of the query loss at θ.

    Args:
        module: as for `MetaLearner`.
        maml: as for `MetaLearner`: λ is ``regularization``, ``cg_iterations`` and ``cg_damping``
            are of conjugate gradients; ``method`` is implicit, and nothing of the inner loop is
            learnt.
        kind: as for `MetaLearner`.

    Raises:
        SettingError: as `MetaLearner`; settings of ``maml`` that contradict.

    Source: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", NeurIPS
    2019. This is its gradient descent variant (16 inner steps, λ = 2, 5 iterations and a damping
    of 10 on Omniglot, 5 ways); the Hessian-free one takes Newton steps in the inner loop, which
    are not here.
    """

    method: ClassVar[Method] = "implicit"
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
