"""Chapter: reverse-mode differentiation from nothing, and forward mode beside it.

The engine is handed in; `metalearn.tour.scalar_engine` is one, an oracle without torch.
Axes: N samples, H hidden units.
"""

from __future__ import annotations

import inspect
import operator
from functools import partial
from types import ModuleType

import torch
from torch.func import grad

from metalearn.core import functionalize, hessian, jacobian, jvp, vjp
from metalearn.models import MLP
from metalearn.tour.draws import normal, number
from metalearn.tour.stops import Chapter, ScalarEngine, Ways, stop

__all__ = ["chapter"]


@stop("A polynomial", formula="f = x⁴y + y³,  ∇f = (4x³y, x⁴ + 3y²)")
def polynomial(engine: ScalarEngine) -> Ways:
    """Let the engine remember four operations and walk back through them."""

    def f(x, y):
        return x**4 * y + y**3

    def engine_walks_back():
        x, y = engine.Scalar(2), engine.Scalar(3)
        return [g.value for g in engine.gradients(f(x, y), [x, y])]

    def torch_does():
        return grad(f, argnums=(0, 1))(number(2), number(3))

    def closed_form():
        return 4 * 2**3 * 3.0, 2**4 + 3 * 3.0**2

    return Ways((engine_walks_back, torch_does, closed_form))


@stop("Its second derivatives", formula="∇²f = (12x²y, 4x³; 4x³, 6y)")
def polynomial_twice(engine: ScalarEngine) -> Ways:
    """Walk back through the walk back: the engine's gradients are its own numbers again."""

    def f(x, y):
        return x**4 * y + y**3

    def engine_twice():
        inputs = [engine.Scalar(2), engine.Scalar(3)]
        first = engine.gradients(f(*inputs), inputs)
        return [h.value for g in first for h in engine.gradients(g, inputs)]

    def our_hessian():
        return hessian(f, argnums=(0, 1))(number(2), number(3))

    def closed_form():
        return 12 * 2**2 * 3.0, 4 * 2.0**3, 4 * 2.0**3, 6 * 3.0

    return Ways((engine_twice, our_hessian, closed_form))


@stop("Linear regression", formula="L = 1/N · Σ_n (x_nᵀw − y_n)²,  ∇L = 2/N · Xᵀ(Xw − y)")
def regression(engine: ScalarEngine) -> Ways:
    """Differentiate number by number what torch does by the array, and see the price of it."""
    x, y, w = normal(30, 3, seed=0), normal(30, seed=1), normal(3, seed=2)

    def engine_walks_back():
        weights = [engine.Scalar(value) for value in w.tolist()]
        loss = engine.Scalar(0)
        for row, target in zip(x.tolist(), y.tolist()):
            output = sum(a * b for a, b in zip(weights, row))
            loss = loss + (output - target) ** 2 * (1 / 30)
        return torch.stack([number(g.value) for g in engine.gradients(loss, weights)])

    def torch_walks_back():
        leaf = w.clone().requires_grad_()
        (x @ leaf - y).square().mean().backward()
        return leaf.grad

    def closed_form():
        return 2 / 30 * x.T @ (x @ w - y)

    return Ways((engine_walks_back, torch_walks_back, closed_form))


@stop(
    "An MLP whose matrix product is written with vmap",
    formula="L = ‖tanh(X·W₁ᵀ)·w₂ − y‖²,  (A·Bᵀ)[i, j] = dot(a_i, b_j)",
)
def network(engine: ScalarEngine) -> Ways:
    """Write the network once and run it twice: on torch's arrays, and on the engine's numbers.

    The matrix product is two nested vmaps around a dot product. Engine and torch each bring a
    vmap, a dot and a tanh of their own; the text of the loss is the same.
    """
    x, y, w1, w2 = normal(6, 3, seed=0), normal(6, seed=1), normal(4, 3, seed=2), normal(4, seed=3)

    def loss(vmap, dot, tanh, w1, w2, x, y):
        product = vmap(vmap(dot, (None, 0)), (0, None))  # all rows of one, all rows of the other
        hidden = vmap(vmap(tanh, (0,)), (0,))(product(x, w1))  # [N, H]
        residual = vmap(operator.sub, (0, 0))(vmap(dot, (0, None))(hidden, w2), y)
        return dot(residual, residual)

    def scalars(rows):
        return [[engine.Scalar(value) for value in row] for row in rows.tolist()]

    def scalar_dot(a, b):
        return sum(u * v for u, v in zip(a, b))

    def engine_walks_back():
        first, (second,) = scalars(w1), scalars(w2[None])
        own = (engine.vmap, scalar_dot, engine.Scalar.tanh)
        output = loss(*own, first, second, x.tolist(), y.tolist())
        found = engine.gradients(output, [*first[0], *first[1], *first[2], *first[3], *second])
        flat = torch.stack([number(g.value) for g in found])
        return flat[:12].view(4, 3), flat[12:]

    def torch_does():
        own = (torch.func.vmap, torch.dot, torch.tanh)
        return grad(lambda w1, w2: loss(*own, w1, w2, x, y), argnums=(0, 1))(w1, w2)

    def plain_backward():
        a, b = w1.clone().requires_grad_(), w2.clone().requires_grad_()
        (torch.tanh(x @ a.T) @ b - y).square().sum().backward()
        return a.grad, b.grad

    return Ways((engine_walks_back, torch_does, plain_backward))


@stop("Forward mode equals reverse mode", formula="⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩")
def two_modes() -> Ways:
    """Push a change v of the parameters forwards, or pull a weight u of the outputs backwards.

    They meet in one number: how much the outputs, weighted by u, change along v.
    """
    apply, params, buffers = functionalize(MLP((3,), 2, hidden=(8,), seed=0).double())
    x, u = normal(10, 3, seed=1), normal(10, 2, seed=2)
    v = {name: normal(*p.shape, seed=3) for name, p in params.items()}

    def f(params):
        return apply(params, buffers, x)

    def forwards():
        return (u * jvp(f, params, v)[1]).sum()

    def backwards():
        pulled = vjp(f, params, u)[1]
        return torch.stack([(pulled[name] * v[name]).sum() for name in v]).sum()

    def whole_jacobian_forwards():
        j = jacobian(f, mode="forward")(params)
        return sum(torch.tensordot(u, j[name], 2).mul(v[name]).sum() for name in v)

    def whole_jacobian_backwards():
        j = jacobian(f, mode="reverse")(params)
        return sum(torch.tensordot(u, j[name], 2).mul(v[name]).sum() for name in v)

    return Ways((forwards, backwards, whole_jacobian_forwards, whole_jacobian_backwards))


def chapter(engine: ScalarEngine) -> Chapter:
    """The chapter for a scalar engine."""
    own = (polynomial, polynomial_twice, regression, network)
    return Chapter(
        "engine",
        "Differentiation from nothing",
        "How a machine differentiates at all: numbers that remember what they were made of.",
        (*(partial(stop, engine) for stop in own), two_modes),
        source=inspect.getsource(engine).rstrip() if isinstance(engine, ModuleType) else "",
    )
