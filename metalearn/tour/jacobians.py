"""Chapter: Jacobians by rows and by columns.

Axes: N samples.
"""

from __future__ import annotations

import torch
from torch.func import vmap

from metalearn.core import jacobian, jacobian_mode
from metalearn.tour.draws import normal
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


def layer(weight, x):
    """Outputs y = tanh(Wx)."""
    return torch.tanh(weight @ x)


def rows(f, x):
    """The Jacobian as one gets it from autograd: a pass backwards for every output."""
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    units = torch.eye(len(y), dtype=y.dtype)
    return torch.stack([torch.autograd.grad(y, leaf, u, retain_graph=True)[0] for u in units])


@stop("A tall Jacobian: many outputs of few inputs", formula="y = tanh(Wx),  J = diag(1 − y²)·W")
def tall() -> Ways:
    """Build 512 × 8 derivatives from rows (reverse mode) or from columns (forward mode).

    Each output costs a pass backwards, each input a pass forwards: here forwards wins.
    """
    weight, x = normal(512, 8, seed=0), normal(8, seed=1)

    def f(x):
        return layer(weight, x)

    def ours():
        return jacobian(f)(x)  # chooses by shape

    def by_forward_mode():
        return jacobian(f, mode="forward")(x)

    def by_reverse_mode():
        return jacobian(f, mode="reverse")(x)

    def row_by_row():
        return rows(f, x)

    def closed_form():
        return (1 - f(x).square())[:, None] * weight

    note = f"ours chose {jacobian_mode(f, (x,))} mode"
    return Ways((ours, by_forward_mode, by_reverse_mode, row_by_row, closed_form), note=note)


@stop("A wide Jacobian: few outputs of many inputs", formula="y = tanh(Wx),  J = diag(1 − y²)·W")
def wide() -> Ways:
    """Turn the shape around, 8 × 512, and the choice turns too: a loss is the widest of all."""
    weight, x = normal(8, 512, seed=0) / 20, normal(512, seed=1)

    def f(x):
        return layer(weight, x)

    def ours():
        return jacobian(f)(x)

    def by_forward_mode():
        return jacobian(f, mode="forward")(x)

    def by_reverse_mode():
        return jacobian(f, mode="reverse")(x)

    def row_by_row():
        return rows(f, x)

    def closed_form():
        return (1 - f(x).square())[:, None] * weight

    note = f"ours chose {jacobian_mode(f, (x,))} mode"
    return Ways((ours, by_forward_mode, by_reverse_mode, row_by_row, closed_form), note=note)


@stop("With respect to the weights", formula="∂y_i/∂W_jk = (1 − y_i²)·x_k where i = j, else 0")
def of_weights() -> Ways:
    """Name the argument to differentiate; the Jacobian has an axis for each axis of both."""
    weight, x = normal(16, 8, seed=0), normal(8, seed=1)

    def ours():
        return jacobian(layer, argnums=0)(weight, x)  # [16, 16, 8]

    def both_at_once():
        return jacobian(layer, argnums=(0, 1))(weight, x)[0]  # and [1] is with respect to x

    def row_by_row():
        return rows(lambda weight: layer(weight, x), weight)

    def closed_form():
        slopes = 1 - layer(weight, x).square()
        return torch.einsum("i,ij,k->ijk", slopes, torch.eye(16, dtype=x.dtype), x)

    return Ways((ours, both_at_once, row_by_row, closed_form))


@stop(
    "A Jacobian for every sample of a batch",
    formula="J[n] = diag(1 − y[n]²)·W = ∂(Σ_m y[m])/∂x[n]",
)
def batched() -> Ways:
    """Get 64 Jacobians by vmap, or by a trick.

    Samples do not touch each other, so in the Jacobian of the outputs summed over the batch the
    n-th block is the n-th sample's own. The trick fails where samples mix, as in a batch norm.
    """
    weight, x = normal(5, 7, seed=0), normal(64, 7, seed=1)

    def f(x):
        return layer(weight, x)

    def by_vmap():
        return vmap(jacobian(f))(x)

    def by_summing_outputs():
        return jacobian(lambda x: vmap(f)(x).sum(0))(x).movedim(1, 0)

    def by_loop():
        return torch.stack([jacobian(f)(x[n]) for n in range(64)])

    def closed_form():
        return (1 - vmap(f)(x).square())[:, :, None] * weight

    return Ways((by_vmap, by_summing_outputs, by_loop, closed_form))


CHAPTER = Chapter(
    "jacobians",
    "Jacobians",
    "All derivatives of all outputs: rows or columns, for inputs, weights, whole batches.",
    (tall, wide, of_weights, batched),
)
