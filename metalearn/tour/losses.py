"""Chapter: a module's loss as a function of its parameters, whatever they are held in.

Axes: N samples, P parameters.
"""

from __future__ import annotations

import torch
from torch.func import grad

from metalearn.core import functionalize, hessian, jacobian
from metalearn.models import MLP
from metalearn.tour.draws import normal, number
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


@stop(
    "Parameters in a dict, in a tuple, in a module",
    formula="L = mean (Xw + b − y)²,  ∇_w L = 2/N · Xᵀr,  ∇_b L = 2 · mean r,  r = Xw + b − y",
)
def containers() -> Ways:
    """Differentiate one regression three times: the gradient comes in the parameters' own shape.

    A module is made a function by functionalize: parameters go in by name, nothing is stored.
    """
    x, y = normal(50, 3, seed=0), normal(50, 1, seed=1)
    module = MLP((3,), 1, hidden=(), seed=0).double()  # a single linear layer
    apply, params, buffers = functionalize(module)
    weight, bias = params.values()

    def of_dict():
        def loss(p):
            return (x @ p["w"].T + p["b"] - y).square().mean()

        return grad(loss)({"w": weight, "b": bias})

    def of_tuple():
        def loss(p):
            return (x @ p[0].T + p[1] - y).square().mean()

        return grad(loss)((weight, bias))

    def of_module():
        return grad(lambda p: (apply(p, buffers, x) - y).square().mean())(params)

    def stateful():
        module.zero_grad()
        (module(x) - y).square().mean().backward()
        return [p.grad for p in module.parameters()]

    def closed_form():
        residual = x @ weight.T + bias - y
        return 2 / 50 * residual.T @ x, 2 * residual.mean(0)

    return Ways((of_dict, of_tuple, of_module, stateful, closed_form))


@stop(
    "The blocks of its Hessian",
    formula="H_ww = 2/N · XᵀX,  H_wb = 2 · mean x,  H_bb = 2",
)
def blocks() -> Ways:
    """Read the Hessian of a tree of parameters as a tree of trees: H["w"]["b"] is a block."""
    x, y = normal(50, 3, seed=0), normal(50, seed=1)
    params = {"w": normal(3, seed=2), "b": normal(1, seed=3)}

    def loss(p):
        return (x @ p["w"] + p["b"] - y).square().mean()

    def of_dict():
        h = hessian(loss)(params)
        return h["w"]["w"], h["w"]["b"], h["b"]["w"], h["b"]["b"]

    def of_tuple():
        h = hessian(lambda p: loss({"w": p[0], "b": p[1]}))((params["w"], params["b"]))
        return h[0][0], h[0][1], h[1][0], h[1][1]

    def closed_form():
        mixed = 2 * x.mean(0)
        return 2 / 50 * x.T @ x, mixed[:, None], mixed[None, :], number(2).view(1, 1)

    return Ways((of_dict, of_tuple, closed_form))


@stop("The Hessian of a module as one matrix", formula="H = 2/N · [X 1]ᵀ[X 1]")
def one_matrix() -> Ways:
    """Do the same for a module's parameters, as a tree of blocks or as one matrix over all P."""
    x, y = normal(50, 3, seed=0), normal(50, 1, seed=1)
    apply, params, buffers = functionalize(MLP((3,), 1, hidden=(), seed=0).double())

    def loss(p):
        return (apply(p, buffers, x) - y).square().mean()

    def as_matrix():
        return hessian(loss, as_matrix=True)(params)

    def from_blocks():
        h = hessian(loss)(params)

        def block(a, b):
            return h[a][b].reshape(params[a].numel(), params[b].numel())

        return torch.cat([torch.cat([block(a, b) for b in params], 1) for a in params], 0)

    def closed_form():
        with_one = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        return 2 / 50 * with_one.T @ with_one

    return Ways((as_matrix, from_blocks, closed_form))


@stop("A trap: gradients of a tuple of outputs are summed", formula="d/dx (x² + x³) = 2x + 3x²")
def summed() -> Ways:
    """Ask autograd for the gradient of two outputs, and get one answer: that of their sum.

    No error, no warning: the gradient of the first output alone is something else.
    """
    x = normal(4, seed=0)

    def f(x):
        return (x**2).sum(), (x**3).sum()

    def of_tuple():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(f(leaf), leaf)[0]

    def of_their_sum():
        return grad(lambda x: sum(f(x)))(x)

    def closed_form():
        return 2 * x + 3 * x**2

    def of_the_first():
        return grad(lambda x: f(x)[0])(x)

    return Ways((of_tuple, of_their_sum, closed_form), unlike=of_the_first)


@stop("The way out of the trap", formula="d/dx (x², x³) = (2x, 3x²)")
def kept_apart() -> Ways:
    """Take the Jacobian instead: it answers for each output, in the outputs' own shape."""
    x = normal(4, seed=0)

    def f(x):
        return (x**2).sum(), (x**3).sum()

    def by_jacobian():
        return jacobian(f)(x)

    def one_at_a_time():
        return grad(lambda x: f(x)[0])(x), grad(lambda x: f(x)[1])(x)

    def closed_form():
        return 2 * x, 3 * x**2

    return Ways((by_jacobian, one_at_a_time, closed_form))


CHAPTER = Chapter(
    "losses",
    "From modules to functions",
    "A loss as a function of a tree of parameters: gradients, Hessian blocks, and a trap.",
    (containers, blocks, one_matrix, summed, kept_apart),
)
