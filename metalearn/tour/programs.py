"""Chapter: whole programs, one compiled before it runs, one differentiated from end to end."""

from __future__ import annotations

import torch
from functorch.compile import aot_function, make_boxed_func
from torch.func import grad

from metalearn.core import adapt, hyper_gradient, sgd
from metalearn.core.tree import leaves
from metalearn.tour.draws import normal, number
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


def network(w, x):
    """Ten tanh units over x, [N]."""
    return torch.tanh(x @ w[:, :10]) @ w[0, 10:]


def fit(w, weight, batch):
    """The training loss: squared errors, each sample by its weight."""
    x, y = batch
    return (weight * (network(w, x) - y).square()).mean()


def score(w, weight, batch):
    """The test loss, where no sample has a weight."""
    x, y = batch
    return (network(w, x) - y).square().mean()


@stop("A function compiled ahead of time", formula="f = Σ tanh(Xw)²,  ∇f = Xᵀ·2h(1 − h²)")
def ahead_of_time() -> Ways:
    """Trace a function and its derivative once into two lists of operations, then run these.

    The lists are whole programs: what backward needs of forward is an output of forward. Here each
    operation runs as torch has it; torch.compile writes one kernel of many, by a C++ compiler.
    """
    x, w, graphs = normal(200, 30, seed=0), normal(30, seed=1), []

    def f(w, x):  # every tensor is an argument: a program has no others
        return torch.tanh(x @ w).square().sum()

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = aot_function(f, fw_compiler=keep, bw_compiler=keep)

    def as_compiled():
        leaf = w.clone().requires_grad_()
        compiled(leaf, x).backward()
        return leaf.grad

    def as_written():
        leaf = w.clone().requires_grad_()
        f(leaf, x).backward()
        return leaf.grad

    def by_grad():
        return grad(f)(w, x)

    def closed_form():
        h = torch.tanh(x @ w)
        return x.T @ (2 * h * (1 - h.square()))

    def operations(graph):
        called = (n for n in graph.graph.nodes if n.op == "call_function")
        return " → ".join(n.target.overloadpacket.__name__ for n in called)

    as_compiled()
    note = "\n     ".join(
        ["forward:  " + operations(graphs[0]), "backward: " + operations(graphs[1])]
    )
    return Ways((as_compiled, as_written, by_grad, closed_form), note=note)


@stop(
    "The gradient of a test loss through a whole training run",
    formula="d/dh L_test(θ_20(h)),  θ ← θ − 0.1·∇_θ L_train(θ, h)",
    tolerance=1e-8,
)
def through_a_run() -> Ways:
    """Ask of each training sample how the test loss would change if it counted a little more.

    One walk back through twenty steps answers for all 16; two retrainings answer for one direction,
    and only as well as a finite difference can.
    """
    batch = normal(16, 3, seed=0), normal(16, seed=1)
    test = normal(9, 3, seed=2), normal(9, seed=3)
    start, weight, v = normal(3, 20, seed=4) / 2, torch.ones_like(batch[1]), normal(16, seed=5)

    def tested(weight):
        end = adapt(lambda w, b: fit(w, weight, b), start, batch, optimizer=sgd(0.1), steps=20)
        return score(end.params, weight, test)

    def ours():
        run = hyper_gradient(fit, score, start, weight, [batch] * 20, test, optimizer=sgd(0.1))
        return run.hyper_grads @ v

    def unrolled():
        return grad(tested)(weight) @ v

    def of_two_retrainings():
        return (tested(weight + 1e-4 * v) - tested(weight - 1e-4 * v)) / 2e-4

    return Ways((ours, unrolled, of_two_retrainings))


@stop(
    "The same for a step size",
    formula="d/dα L_test(θ_20(α)),  θ ← θ − α·∇_θ L_train(θ)",
    tolerance=1e-8,
)
def of_a_step_size() -> Ways:
    """Ask whether larger steps would have served the test loss: a step size is an input as well."""
    batch = normal(16, 3, seed=0), normal(16, seed=1)
    test = normal(9, 3, seed=2), normal(9, seed=3)
    start, weight = normal(3, 20, seed=4) / 2, torch.ones_like(batch[1])

    def tested(alpha):
        w = start
        for _ in range(20):
            w = w - alpha * grad(fit)(w, weight, batch)
        return score(w, weight, test)

    def ours():
        alpha = number(0.1)  # a tensor is learnt
        run = hyper_gradient(fit, score, start, weight, [batch] * 20, test, optimizer=sgd(alpha))
        return leaves(run.optimizer_grads)[0]

    def unrolled():
        return grad(tested)(number(0.1))

    def of_two_retrainings():
        return (tested(0.1 + 1e-5) - tested(0.1 - 1e-5)) / 2e-5

    return Ways((ours, unrolled, of_two_retrainings))


CHAPTER = Chapter(
    "programs",
    "Whole programs",
    "A function compiled before it runs, and gradients through a training run.",
    (ahead_of_time, through_a_run, of_a_step_size),
)
