"""The gradients of members as units that diagnostics look at.

Axes: M members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from metalearn.trainers.diagnostics import GradientUnits
from metalearn.trainers.members.population import Population

__all__ = ["member_units"]


def member_units(population: Population, grads: Mapping[str, Tensor]) -> GradientUnits:
    """The gradients of the members that are trained, as units of one population.

    Args:
        population: of the members.
        grads: of a step, leaves ``[M, ...]``.
    """
    chosen = population.active.nonzero().flatten()
    chunk = {name: grad[chosen.to(grad.device)][None] for name, grad in grads.items()}
    limit = math.inf if population.clip is None else population.clip
    labels = [str(index) for index in chosen.tolist()]
    return GradientUnits("member", lambda: [[chunk]], len(chosen), limit, labels)
