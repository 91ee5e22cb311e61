"""Elastic weight consolidation: keep what an earlier task needs while a later one is learnt.

Axes: N samples of the earlier task.
Source: Kirkpatrick et al., "Overcoming Catastrophic Forgetting in Neural Networks", PNAS 2017.
"""

from __future__ import annotations

from torch import Tensor

from metalearn.core.checks import call_given, check_number
from metalearn.core.curvature.operators import Operator
from metalearn.core.loss_checks import check_scalar
from metalearn.core.tree import add_scaled, check_floating, check_like, dot, tree_map
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["consolidated_loss", "consolidation_penalty"]


@checked
def consolidation_penalty(
    params: Params, anchor: Params, fisher: Params | Operator, *, strength: float | Tensor
) -> Tensor:
    """strength/2 · (θ − θ*)ᵀ·F·(θ − θ*), a scalar.

    F belongs to the mean over samples (1/N); with strength = N the penalty is the second-order
    expansion of the earlier task's summed negative log-likelihood around θ*.

    Args:
        params: θ.
        anchor: θ*, the parameters after the earlier task.
        fisher: a tree of diagonals, as `metalearn.core.fisher_diagonal` gives, or a product F·v,
            as ``KroneckerFisher.product``.
        strength: λ of the paper.

    Raises:
        SettingError: a strength below 0, trees that do not fit.
    """
    check_number("strength", strength, least=0, accepted="a number of at least 0 is needed")
    check_floating(params, "params")
    for name, tree in (("anchor", anchor), ("fisher", fisher)):
        if name == "anchor" or not callable(tree):
            check_like(tree, params, name)
    moved = add_scaled(params, anchor, -1)
    if callable(fisher):
        pulled = fisher(moved)
        check_like(pulled, params, "fisher(v)")
    else:
        pulled = tree_map(lambda f, m: f * m, fisher, moved)
    return 0.5 * strength * dot(moved, pulled)


@checked
def consolidated_loss(
    loss_fn: LossFn, anchor: Params, fisher: Params | Operator, *, strength: float | Tensor
) -> LossFn:
    """The later task's loss with `consolidation_penalty` added: a loss function again."""
    check_number("strength", strength, least=0, accepted="a number of at least 0 is needed")
    check_floating(anchor, "anchor")
    if not callable(fisher):
        check_like(fisher, anchor, "fisher")

    def loss(params: Params, batch: Batch) -> Tensor:
        penalty = consolidation_penalty(params, anchor, fisher, strength=strength)
        return check_scalar(call_given(loss_fn, "loss_fn", params, batch), "loss_fn") + penalty

    return loss
