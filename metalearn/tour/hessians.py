"""Chapter: Hessians and their products with vectors.

Axes: N samples.
"""

from __future__ import annotations

import torch
from torch.func import grad, vmap

from metalearn.core import hessian, hvp, jacobian
from metalearn.tour.draws import normal
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


@stop(
    "A Hessian, three ways",
    formula="f(x) = log Σ exp(Ax),  ∇²f = Aᵀ(diag(p) − ppᵀ)A,  p = softmax(Ax)",
)
def three_ways() -> Ways:
    """Take the Jacobian of the gradient: rows backwards, columns forwards, or one by one."""
    a, x = normal(20, 32, seed=0) / 4, normal(32, seed=1)

    def f(x):
        return torch.logsumexp(a @ x, 0)

    def reverse_over_reverse():
        return hessian(f, mode="reverse")(x)

    def forward_over_reverse():
        return hessian(f, mode="forward")(x)

    def jacobian_of_gradient():
        return jacobian(grad(f))(x)

    def row_by_row():
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        return torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in slope])

    def closed_form():
        p = torch.softmax(a @ x, 0)
        return a.T @ (torch.diag(p) - torch.outer(p, p)) @ a

    return Ways(
        (reverse_over_reverse, forward_over_reverse, jacobian_of_gradient, row_by_row, closed_form)
    )


@stop("A Hessian for every sample of a batch", formula="H[n] = Aᵀ(diag(p[n]) − p[n]p[n]ᵀ)A")
def batched() -> Ways:
    """Put one vmap around the Hessian of one sample: no new mathematics."""
    a, x = normal(6, 5, seed=0), normal(40, 5, seed=1)

    def f(x):
        return torch.logsumexp(a @ x, 0)

    def by_vmap():
        return vmap(hessian(f))(x)

    def by_loop():
        return torch.stack([hessian(f)(x[n]) for n in range(40)])

    def closed_form():
        p = torch.softmax(x @ a.T, 1)
        return torch.einsum("ka,nk,kb->nab", a, p, a) - vmap(torch.outer)(p @ a, p @ a)

    return Ways((by_vmap, by_loop, closed_form))


@stop(
    "A Hessian times a vector, without the Hessian",
    formula="∇²f·v = d/dε ∇f(x + εv) = ∇⟨∇f(x), v⟩",
)
def products() -> Ways:
    """Multiply for the price of about two gradients; the matrix of 600 × 600 is never there.

    Forward over reverse asks how the gradient changes along v; reverse over reverse takes the
    gradient of the gradient's product with v.
    """
    a, x, v = normal(50, 600, seed=0) / 20, normal(600, seed=1), normal(600, seed=2)

    def f(x):
        return torch.logsumexp(a @ x, 0)

    def forward_over_reverse():
        return hvp(f, x, v, mode="forward_over_reverse")

    def reverse_over_reverse():
        return hvp(f, x, v, mode="reverse_over_reverse")

    def with_the_matrix():
        return hessian(f)(x) @ v

    def closed_form():
        p, along = torch.softmax(a @ x, 0), a @ v
        return a.T @ (p * along - p * (p @ along))

    return Ways((forward_over_reverse, reverse_over_reverse, with_the_matrix, closed_form))


CHAPTER = Chapter(
    "hessians",
    "Hessians",
    "Curvature: the whole matrix, one for each sample, or its product with a vector alone.",
    (three_ways, batched, products),
)
