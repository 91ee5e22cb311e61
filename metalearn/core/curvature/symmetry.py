"""Whether an operator is what eigenvalues, traces and conjugate gradients assume.

Axes: P parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metalearn.core.autodiff.adjoint_tests import (
    is_concrete,
    random_like,
    term_sums,
    within_rounding,
)
from metalearn.core.autodiff.products import leaves_like
from metalearn.core.curvature.operators import Operator
from metalearn.core.tree import check_floating, is_finite, ravel
from metalearn.errors import SettingError

__all__ = ["check_symmetric"]


def check_symmetric(operator: Operator, like: Any, setting: str = "matvec") -> None:
    """Refuse an operator that is not symmetric or gives two answers for one vector.

    ⟨u, A·v⟩ must be ⟨v, A·u⟩ for random u and v, which takes two products, and A·v is taken once
    more where they differ, to tell which it is. They may be apart by eps^0.4 of their terms (5e-7
    in float64, 2e-3 in float32): rounding leaves a thousandth of that, an operator that is not
    symmetric a number of the order of 1. Skipped inside transforms, where values cannot be read.

    Args:
        operator: A·v of a tree.
        like: a tree that gives shapes, type and device.
        setting: what the operator is called in the sentence.

    Raises:
        SettingError: a product that is not finite or not shaped like ``like``; no symmetry.
    """
    check_floating(like, "like")
    flat, unravel = ravel(like)
    if not is_concrete([flat]):
        return

    def times(vector: Tensor) -> Tensor:
        given = operator(unravel(vector))
        found = torch.cat([x.reshape(-1) for x in leaves_like(given, like, f"{setting}(v)")])
        if not is_finite(found):
            raise SettingError(
                setting, "NaN or infinite", "finite products are needed, and that with a random "
                "vector is not: look at the parameters, the data and the loss",
            )  # fmt: skip
        return found

    u, v = random_like([flat, flat])
    image = times(v)
    one, size = term_sums([u], [image])
    two, other = term_sums([v], [times(u)])
    if within_rounding(one, two, size + other, [flat], lambda: operator(unravel(v))):
        return
    gap = (times(v) - image).norm() / image.norm()
    sides = f"⟨u, A·v⟩ is {one:.6g} and ⟨v, A·u⟩ is {two:.6g}"
    if float(gap) > 0:
        raise SettingError(
            setting, "not deterministic", "the same product twice is needed, and for one vector "
            f"they are apart by {float(gap):.2g} of their size: draw what is random once",
        )  # fmt: skip
    raise SettingError(
        setting, "not symmetric", f"a symmetric matrix is needed, and for random u and v {sides}"
    )
