"""Chapter: the gradient of every sample, and the Fisher matrices that they make.

Axes: N samples, P parameters.
"""

from __future__ import annotations

import torch

from metalearn.core import fisher_matrix, hessian, per_sample_gradients
from metalearn.tour.draws import normal
from metalearn.tour.stops import Chapter, Ways, stop

__all__ = ["CHAPTER"]


def model(w, x):
    """One output for each sample, [N, 1]."""
    return x @ w[:, None]


def loss(w, batch):
    """Half the mean squared error: a unit normal's mean −log p, but for a constant."""
    x, y = batch
    return 0.5 * (model(w, x)[:, 0] - y).square().mean()


@stop(
    "Per-sample gradients of a regression",
    formula="ℓ_n = ½(x_nᵀw − y_n)²,  g_n = (x_nᵀw − y_n)·x_n",
)
def every_gradient() -> Ways:
    """Get the gradient of each of 200 samples, where an ordinary backward pass gives their mean."""
    x, y, w = normal(200, 4, seed=0), normal(200, seed=1), normal(4, seed=2)

    def all_at_once():
        return per_sample_gradients(loss, w, (x, y))

    def by_loop():
        rows = []
        for n in range(200):
            leaf = w.clone().requires_grad_()
            loss(leaf, (x[n : n + 1], y[n : n + 1])).backward()
            rows.append(leaf.grad)
        return torch.stack(rows)

    def closed_form():
        return (x @ w - y)[:, None] * x

    return Ways((all_at_once, by_loop, closed_form))


@stop("Their mean is the gradient of the batch", formula="1/N · Σ_n g_n = ∇ 1/N · Σ_n ℓ_n")
def mean_gradient() -> Ways:
    """See that nothing was lost, and what knowing each costs beside knowing the mean."""
    x, y, w = normal(200, 4, seed=0), normal(200, seed=1), normal(4, seed=2)

    def mean_of_all():
        return per_sample_gradients(loss, w, (x, y)).mean(0)

    def one_backward():
        leaf = w.clone().requires_grad_()
        loss(leaf, (x, y)).backward()
        return leaf.grad

    return Ways((mean_of_all, one_backward))


@stop(
    "The empirical Fisher matrix of a small regression",
    formula="F = 1/N · Σ_n g_n g_nᵀ = 1/N · Xᵀ diag(r²) X,  r = Xw − y",
)
def empirical_fisher() -> Ways:
    """Multiply each gradient with itself and average: where samples push hardest."""
    x, y, w = normal(200, 4, seed=0), normal(200, seed=1), normal(4, seed=2)

    def ours():
        return fisher_matrix(model, w, (x, y[:, None]), likelihood="gaussian", kind="empirical")

    def of_gradients():
        gradients = per_sample_gradients(loss, w, (x, y))
        return gradients.T @ gradients / 200

    def closed_form():
        residual = x @ w - y
        return x.T @ (residual.square()[:, None] * x) / 200

    return Ways((ours, of_gradients, closed_form))


@stop("The exact Fisher matrix is another one", formula="F = 1/N · XᵀX = ∇² ½·mean (Xw − y)²")
def exact_fisher() -> Ways:
    """Average over the targets that the model expects, not over those that were seen.

    For a regression with unit variance it is the Hessian of the loss; the empirical one is not.
    """
    x, y, w = normal(200, 4, seed=0), normal(200, seed=1), normal(4, seed=2)

    def exact():
        return fisher_matrix(model, w, (x, None), likelihood="gaussian", kind="exact")

    def hessian_of_the_loss():
        return hessian(loss)(w, (x, y))

    def closed_form():
        return x.T @ x / 200

    def empirical():
        return fisher_matrix(model, w, (x, y[:, None]), likelihood="gaussian", kind="empirical")

    return Ways((exact, hessian_of_the_loss, closed_form), unlike=empirical)


CHAPTER = Chapter(
    "samples",
    "Every sample's gradient",
    "What the mean gradient hides: each sample's own gradient, and the matrices they make.",
    (every_gradient, mean_gradient, empirical_fisher, exact_fisher),
)
