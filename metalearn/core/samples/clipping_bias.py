"""How far a mean of clipped gradients is from the gradient that it stands for.

Axes: N samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metalearn.core.chunking import ChunkSize
from metalearn.core.float64 import widest
from metalearn.core.samples.clipping import clipped_gradient
from metalearn.core.samples.clipping_groups import Clipping, ParameterGroups
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.tree import leaves
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["ClippingBias", "clipping_bias"]


class ClippingBias(NamedTuple):
    """A mean of clipped gradients beside the mean of the gradients; scalars in float64."""

    cosine: Tensor
    """⟨c, g⟩/(‖c‖·‖g‖), 1 where clipping only shortens; NaN where one of them is zero."""
    norm_ratio: Tensor
    """‖c‖/‖g‖."""
    clipped_fraction: Tensor
    """The share of samples, or of samples and groups, that were clipped."""


@checked
def clipping_bias(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    max_norm: float | Tensor,
    clipping: Clipping = "flat",
    groups: ParameterGroups = "all",
    chunk_size: ChunkSize = None,
    method: SampleMethod = "layers",
) -> ClippingBias:
    """The angle between c = (1/N) Σ g_i·min(1, C/‖g_i‖) and g = (1/N) Σ g_i, and their lengths.

    Clipping shortens every gradient, which a larger learning rate makes up for, and turns their
    mean towards the samples whose gradients are short, which nothing does (Chen, Wu and Hong,
    "Understanding Gradient Clipping in Private SGD: A Geometric Perspective", NeurIPS 2020).

    Args:
        loss_fn: as for `clipped_gradient`, as are all others.
        params: see there.
        batch: see there; of private samples the result is private.
        max_norm: see there.
        clipping: see there.
        groups: see there.
        chunk_size: see there.
        method: see there.

    Raises:
        SettingError: as `clipped_gradient`.
    """
    how: Any = {"chunk_size": chunk_size, "method": method}
    short = clipped_gradient(
        loss_fn, params, batch, max_norm=max_norm, clipping=clipping, groups=groups, **how
    )
    whole = clipped_gradient(loss_fn, params, batch, max_norm=float("inf"), **how)
    clipped, plain = (_joined(found.grads) for found in (short, whole))
    lengths = [torch.linalg.vector_norm(vector) for vector in (clipped, plain)]
    cosine = torch.dot(clipped, plain) / (lengths[0] * lengths[1])
    return ClippingBias(cosine, lengths[0] / lengths[1], widest(short.clipped_fraction))


def _joined(grads: Params) -> Tensor:
    return torch.cat([widest(leaf).flatten() for leaf in leaves(grads)])
