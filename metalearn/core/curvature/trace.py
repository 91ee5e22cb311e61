"""The trace of a symmetric matrix known by its products.

What is asked of an operator stands in `curvature.lanczos`.

Axes: P parameters (dimension of the matrix).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from metalearn.core.curvature.lanczos import orthogonal_part
from metalearn.core.curvature.operators import Operator
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.core.precision import in_float32
from metalearn.core.random_tensors import signs
from metalearn.core.tree import ravel
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["TraceEstimate", "trace_estimate"]


class TraceEstimate(NamedTuple):
    """An unbiased estimate."""

    trace: Tensor
    standard_error: Tensor
    """Of the estimate, from the spread of the probes."""


@checked
def trace_estimate(
    matvec: Operator,
    like: Any,
    *,
    products: int,
    generator: torch.Generator,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
) -> TraceEstimate:
    """Tr A from random products, with Rademacher probes z (entries ±1).

    ``"hutchinson"``: the mean of zᵀA·z. ``"hutch++"``: tr(QᵀA·Q) for an orthonormal basis Q of A·S
    with a third of the products as random directions S, and the mean of zᵀ(I−QQᵀ)A(I−QQᵀ)z for the
    rest; exact, its standard error 0, where the rank of A is at most that third.

    Args:
        matvec: A·v of a tree, A symmetric.
        like: a tree that gives shapes, type and device.
        products: how many with A beside the two of the test: at least 2, for Hutch++ at least 4.
        generator: of the probes.
        method: which.

    Raises:
        SettingError: an unknown method, too few products; an operator as for `lanczos`.

    Sources: Hutchinson, 1989; Meyer, Musco, Musco and Woodruff, "Hutch++: Optimal Stochastic Trace
    Estimation", SOSA 2021.
    """
    known = get_args(Literal["hutchinson", "hutch++"])
    if method not in known:
        raise SettingError("method", method, f"one of {', '.join(known)} is needed")
    check_whole("products", products, 2 if method == "hutchinson" else 4)
    check_symmetric(matvec, like)
    matvec, like = in_float32(matvec, like)
    flat, unravel = ravel(like)

    def times(vector: Tensor) -> Tensor:
        image: Tensor = ravel(matvec(unravel(vector)))[0]
        return image

    exact, basis, left = flat.new_zeros(()), flat.new_zeros((1, len(flat))), products
    if method == "hutch++":
        sketch = min(products // 3, len(flat))
        images = torch.stack([times(signs(flat.shape, flat, generator)) for _ in range(sketch)])
        basis = torch.linalg.qr(images.mT).Q.mT
        exact = torch.stack([row @ times(row) for row in basis]).sum()
        left = products - 2 * sketch
    probes = [orthogonal_part(signs(flat.shape, flat, generator), basis) for _ in range(left)]
    values = torch.stack([probe @ times(probe) for probe in probes])
    return TraceEstimate(exact + values.mean(), values.std() / math.sqrt(left))
