"""Steps along the natural gradient (F + δI)⁻¹·∇L.

Axes: P parameters.
Sources: Amari, "Natural Gradient Works Efficiently in Learning", 1998; Martens, "Deep Learning via
Hessian-free Optimization", ICML 2010 (conjugate gradients).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.autodiff.linear_solve import conjugate_gradients
from metalearn.core.checks import check_number
from metalearn.core.curvature.kfac import KroneckerFisher
from metalearn.core.curvature.operators import Operator
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.core.tree import add_scaled, check_floating, check_like, flatten, leaves, unflatten
from metalearn.errors import check_whole
from metalearn.signatures import checked
from metalearn.types import Params

__all__ = ["NaturalGradient", "natural_gradient", "natural_gradient_step"]


class NaturalGradient(NamedTuple):
    """A direction, and how well it solves its equation."""

    direction: Params
    """x with (F + δI)·x = ∇L."""
    residual: Tensor
    """‖(F + δI)·x − ∇L‖ / ‖∇L‖; 0 for Kronecker factors, whose inverse is exact."""


@checked
def natural_gradient(
    gradient: Params,
    fisher: Operator | KroneckerFisher,
    *,
    damping: float,
    iterations: int = 20,
) -> NaturalGradient:
    """Solve (F + δI)·x = ∇L.

    Args:
        gradient: ∇L of the mean loss, a tree.
        fisher: F·v of a tree, as `metalearn.core.fisher_operator` gives, for conjugate gradients,
            its symmetry tested by two products more; or Kronecker factors, inverted exactly.
        damping: δ; at least 0 for an operator, above 0 for Kronecker factors.
        iterations: of conjugate gradients.

    Raises:
        SettingError: a number out of range; an operator that is not symmetric, deterministic or
            finite.
    """
    check_number("damping", damping, least=0, accepted="a number of at least 0 is needed")
    check_floating(gradient, "gradient")
    if isinstance(fisher, KroneckerFisher):
        zero = torch.zeros_like(leaves(gradient)[0].sum())
        return NaturalGradient(fisher.inverse_product(gradient, damping=damping), zero)
    check_whole("iterations", iterations, 1)
    check_symmetric(fisher, gradient, "fisher")
    target, spec = flatten(gradient)

    def product(values: list[Tensor]) -> list[Tensor]:
        tree = unflatten(values, spec)
        return leaves(add_scaled(fisher(tree), tree, damping))

    solution, residual = conjugate_gradients(product, target, target[0].sum(), iterations)
    return NaturalGradient(unflatten(solution, spec), residual)


@checked
def natural_gradient_step(
    params: Params,
    gradient: Params,
    fisher: Operator | KroneckerFisher,
    *,
    lr: float,
    damping: float,
    iterations: int = 20,
) -> Params:
    """θ − lr·(F + δI)⁻¹·∇L; arguments as in `natural_gradient`.

    With lr = 1, δ = 0 and the exact Fisher of a model that is linear in its parameters with a
    gaussian likelihood, one step reaches the minimum.
    """
    check_number("lr", lr)
    check_floating(params, "params")
    check_like(gradient, params, "gradient")
    found = natural_gradient(gradient, fisher, damping=damping, iterations=iterations)
    return add_scaled(params, found.direction, -lr)
