"""The gradients of members as units that diagnostics look at.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from metalearn.trainers.diagnostics import GradientUnits

__all__ = ["member_units"]


def member_units(active: Tensor, grads: Mapping[str, Tensor], *, clip_norm: float) -> GradientUnits:
    """The gradients of the members that are trained, as units of one population.

    Args:
        active: ``[M]``, which members these are.
        grads: of a step, leaves ``[M, ...]``.
        clip_norm: beyond which a member's gradient is clipped; may be infinite.
    """
    chosen = active.nonzero().flatten()
    chunk = {name: grad[chosen.to(grad.device)][None] for name, grad in grads.items()}
    labels = [str(index) for index in chosen.tolist()]
    return GradientUnits("member", lambda: [[chunk]], len(chosen), clip_norm, labels)
