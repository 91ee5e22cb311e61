"""Chapter: gradients, gradients of gradients, gradients through a training step."""

from __future__ import annotations

import torch
from torch.func import grad

from metalearn.core import adapt, hvp, jvp, meta_gradient, sgd, vjp
from metalearn.tour.draws import normal, number
from metalearn.tour.stops import Chapter, Ways, stop
from metalearn.types import TaskBatch

__all__ = ["CHAPTER"]


def loss(w, x):
    """Mean of w²·x: the loss of the samples x."""
    return (w**2 * x).mean()


@stop("The gradient of (w²)·x, stateful and functional", formula="d/dw w²x = 2wx")
def two_styles() -> Ways:
    """Take one gradient in torch's two styles.

    The stateful one leaves it in the .grad of a tensor. The functional one turns a function into
    the function that is its gradient, and touches nothing; all that follows is built on it. On a
    single number it is the slower one; but its price is one of calls, and vmap makes a single call
    of a thousand examples.
    """
    w, x = number(3.0), number(2.0)

    def functional():
        return grad(lambda w: w**2 * x)(w)

    def stateful():
        leaf = w.clone().requires_grad_()
        (leaf**2 * x).backward()
        return leaf.grad

    def closed_form():
        return 2 * w * x

    return Ways((functional, stateful, closed_form))


@stop("Second derivatives: vjp and jvp of a gradient", formula="f(w) = Σ w³x,  ∇²f · 1 = 6wx")
def second_derivatives() -> Ways:
    """Differentiate a gradient, which is a function like any other.

    Backwards (vjp: vector times Jacobian) or forwards (jvp: Jacobian times vector): the Jacobian
    of a gradient, the Hessian, is symmetric, so both products are the same.
    """
    w, x = normal(5, seed=0), normal(5, seed=1)
    ones = torch.ones_like(w)
    slope = grad(lambda w: (w**3 * x).sum())

    def by_vjp():
        return vjp(slope, w, ones)[1]

    def by_jvp():
        return jvp(slope, w, ones)[1]

    def by_hvp():
        return hvp(lambda w: (w**3 * x).sum(), w, ones)

    def stateful():
        leaf = w.clone().requires_grad_()
        total = (leaf**3 * x).sum()
        (first,) = torch.autograd.grad(total, leaf, create_graph=True)
        return torch.autograd.grad(first.sum(), leaf)[0]

    def closed_form():
        return 6 * w * x

    return Ways((by_vjp, by_jvp, by_hvp, stateful, closed_form))


@stop(
    "The gradient through a step of SGD, in full",
    formula="w' = w − α·2wx = w(1 − 2αx),  d/dw w'²x = (1 − 2αx)²·2wx",
)
def through_a_step() -> Ways:
    """Ask how the loss after a step depends on where the step started: meta-learning in one line.

    The step itself depends on w, by way of its gradient, so a second derivative comes in.
    """
    w, x, alpha = number(3.0), number(2.0), 0.1

    def through_adapt():
        return grad(lambda w: loss(adapt(loss, w, x, optimizer=sgd(alpha), steps=1).params, x))(w)

    def by_meta_gradient():
        task = TaskBatch(support=x.view(1, 1), query=x.view(1, 1))  # one task of one sample
        return meta_gradient(loss, w, task, optimizer=sgd(alpha), steps=1).grads

    def stateful():
        leaf = w.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, x), leaf, create_graph=True)
        loss(leaf - alpha * slope, x).backward()
        return leaf.grad

    def closed_form():
        return (1 - 2 * alpha * x) ** 2 * 2 * w * x

    return Ways((through_adapt, by_meta_gradient, stateful, closed_form))


@stop("The same gradient, truncated", formula="d/dw' w'²x = 2wx(1 − 2αx)")
def truncated() -> Ways:
    """Take the gradient after the step as if it were the gradient before it (first-order MAML).

    No second derivative is needed, and one factor 1 − 2αx is missing.
    """
    w, x, alpha = number(3.0), number(2.0), 0.1
    task = TaskBatch(support=x.view(1, 1), query=x.view(1, 1))

    def first_order():
        return meta_gradient(
            loss, w, task, optimizer=sgd(alpha), steps=1, method="first_order"
        ).grads

    def stateful():
        leaf = w.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, x), leaf)  # no create_graph: a constant
        loss(leaf - alpha * slope, x).backward()
        return leaf.grad

    def closed_form():
        return 2 * w * x * (1 - 2 * alpha * x)

    def in_full():
        return meta_gradient(loss, w, task, optimizer=sgd(alpha), steps=1).grads

    return Ways((first_order, stateful, closed_form), unlike=in_full)


CHAPTER = Chapter(
    "gradients",
    "Gradients",
    "One gradient in two styles, the gradient of a gradient, the gradient through training.",
    (two_styles, second_derivatives, through_a_step, truncated),
)
