"""Means and log-variances as outputs: the loss by torch's distributions, Fisher by quadrature.

Axes: N samples, D targets, C = 2·D outputs, P parameters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from metalearn.core import (
    Likelihood,
    fisher_diagonal,
    fisher_kfac,
    fisher_matrix,
    fisher_trace,
    fisher_vp,
    hvp,
    laplace_posterior,
)
from metalearn.core.curvature.gaussian import gaussian_nll, means_and_log_variances
from metalearn.errors import SettingError
from tests.support.curvature_oracles import (
    close,
    empirical_fisher,
    flat,
    gradient,
    leaves_of,
    matrix_of,
    model,
    perceptron,
)
from tests.support.oracles import generator

NAME: Any = "heteroscedastic_gaussian"
FLOOR = 1e-6


def normal(outputs: Tensor) -> Normal:
    """Of outputs ``[..., 2·D]``."""
    half = outputs.shape[-1] // 2
    return Normal(outputs[..., :half], (outputs[..., half:].exp() + FLOOR).sqrt())


def problem(targets: int = 2, count: int = 4) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    outputs_fn, params = model(perceptron(outputs=2 * targets))
    draws = generator(3)
    x = torch.randn(count, 3, dtype=torch.float64, generator=draws)
    return (
        outputs_fn,
        params,
        (x, torch.randn(count, targets, dtype=torch.float64, generator=draws)),
    )


# --- the loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 2), (5, 6), (3, 5, 4)])
def test_the_loss_is_that_of_torchs_distribution(shape: tuple[int, ...]) -> None:
    draws = generator(0)
    outputs = 2 * torch.randn(shape, dtype=torch.float64, generator=draws)
    targets = torch.randn(5, shape[-1] // 2, dtype=torch.float64, generator=draws)
    close(gaussian_nll(outputs, targets), -normal(outputs).log_prob(targets).sum(-1).mean())


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_right_above_and_below_the_floor(order: int) -> None:
    logs = torch.tensor([-40.0, math.log(FLOOR), -3.0, 0.0, 5.0], dtype=torch.float64)
    means = torch.linspace(-1e-3, 1e-3, 5, dtype=torch.float64)
    targets = torch.zeros(5, 1, dtype=torch.float64)

    def loss(outputs: Tensor) -> Tensor:
        return gaussian_nll(outputs, targets)

    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(loss, torch.stack([means, logs], 1).requires_grad_(), eps=1e-7, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_variances_have_a_finite_loss(log: float, dtype: torch.dtype) -> None:
    outputs = torch.tensor([[0.0, log]], dtype=dtype, requires_grad=True)
    loss = gaussian_nll(outputs, torch.tensor([[1.0]], dtype=dtype))
    (grad,) = torch.autograd.grad(loss, outputs)
    assert bool(loss.isfinite()) and bool(grad.isfinite().all())
    exact = max(log, math.log(FLOOR))
    wanted = 0.5 * (math.exp(-exact) + exact + math.log(2 * math.pi))
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-4)


def test_an_exact_fit_has_a_lowest_loss() -> None:
    """At the floor of the variance; without one it would fall for ever."""
    target = torch.zeros(1, 1, dtype=torch.float64)
    far = gaussian_nll(torch.tensor([[0.0, -1e6]], dtype=torch.float64), target)
    assert float(far) == pytest.approx(0.5 * math.log(2 * math.pi * FLOOR), rel=1e-12)


def test_halves_are_means_and_logarithms() -> None:
    means, logs = means_and_log_variances(torch.tensor([1.0, 2.0, 0.0, -100.0]).double())
    assert means.tolist() == [1.0, 2.0]
    close(logs.exp(), torch.tensor([1 + FLOOR, FLOOR], dtype=torch.float64))
    with pytest.raises(SettingError, match=r"^width of outputs=3: an even number is needed"):
        means_and_log_variances(torch.ones(3))


# --- Fisher matrices -------------------------------------------------------------------------


def score(outputs_fn: Any, params: Any, x: Tensor, y: Tensor) -> Tensor:
    """∇ log p(y | f(x)), [P], by a backward pass through torch's density."""
    params = leaves_of(params)
    return gradient(normal(outputs_fn(params, x[None])[0]).log_prob(y).sum(), params)


def by_quadrature(outputs_fn: Any, params: Any, inputs: Tensor) -> Tensor:
    """1/N Σ_n E_y[∇ log p ∇ log pᵀ]: five nodes of Gauss and Hermite for each of two targets."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    total = torch.zeros(())
    for x in inputs:
        found = normal(outputs_fn(params, x[None])[0].detach())
        for one, p in zip(nodes, weights):
            for two, q in zip(nodes, weights):
                y = found.mean + found.stddev * torch.tensor([one, two], dtype=torch.float64)
                row = score(outputs_fn, params, x, y)
                total = total + (p * q / (2 * math.pi)) * torch.outer(row, row)
    return total / len(inputs)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_exact_matrix_is_the_mean_over_targets(chunk_size: int | None) -> None:
    outputs_fn, params, batch = problem()
    rule: Any = {"likelihood": NAME, "kind": "exact", "chunk_size": chunk_size}
    wanted = by_quadrature(outputs_fn, params, batch[0])
    close(fisher_matrix(outputs_fn, params, (batch[0], None), **rule), wanted)
    close(flat(fisher_diagonal(outputs_fn, params, batch, **rule)), wanted.diagonal())
    close(fisher_trace(outputs_fn, params, batch, **rule), wanted.trace())
    product = matrix_of(lambda v: fisher_vp(outputs_fn, params, batch, v, **rule), params)
    close(product, wanted)


def test_the_empirical_matrix_is_that_of_the_targets() -> None:
    outputs_fn, params, batch = problem()
    rows = [score(outputs_fn, params, x, y) for x, y in zip(*batch)]
    wanted = torch.stack([torch.outer(row, row) for row in rows]).mean(0)
    close(fisher_matrix(outputs_fn, params, batch, likelihood=NAME, kind="empirical"), wanted)


@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_members_in_a_vmap_are_members_alone(kind: Any) -> None:
    outputs_fn, first, batch = problem()
    other = {name: value * 0.7 - 0.1 for name, value in first.items()}
    rule: Any = {"likelihood": NAME, "kind": kind}
    stacked = {name: torch.stack([first[name], other[name]]) for name in first}
    found = torch.vmap(lambda p: fisher_diagonal(outputs_fn, p, batch, **rule))(stacked)
    for row, params in enumerate((first, other)):
        wanted = fisher_diagonal(outputs_fn, params, batch, **rule)
        close(flat({name: value[row] for name, value in found.items()}), flat(wanted))


@pytest.mark.parametrize("targets", [1, 3])
def test_draws_come_near_the_mean(targets: int) -> None:
    outputs_fn, params, batch = problem(targets)
    exact = fisher_trace(outputs_fn, params, batch, likelihood=NAME, kind="exact")
    rule = Likelihood(NAME, "monte_carlo", samples=400)
    drawn = fisher_trace(outputs_fn, params, batch, likelihood=rule, generator=generator(1))
    assert float(drawn) == pytest.approx(float(exact), rel=0.15)
    again = fisher_trace(outputs_fn, params, batch, likelihood=rule, generator=generator(1))
    assert torch.equal(drawn, again)


def test_kronecker_factors_of_a_linear_model_have_the_exact_blocks() -> None:
    net = nn.Linear(3, 4, bias=False).double()
    params = {"weight": net.weight.detach()}
    x = torch.randn(1, 3, dtype=torch.float64, generator=generator(2))
    found = fisher_kfac(net, params, (x, None), likelihood=NAME, kind="exact")
    outputs_fn = lambda p, x: x @ p["weight"].mT  # noqa: E731
    exact = fisher_matrix(outputs_fn, params, (x, None), likelihood=NAME, kind="exact")
    close(matrix_of(lambda v: found.product(v), params), exact)


def test_the_exact_matrix_is_the_mean_hessian_in_the_outputs() -> None:
    """E_y of the second derivative of −log p is the same: Fisher's identity, far from the floor."""
    outputs = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)
    noise = torch.randn(20000, 2, dtype=torch.float64, generator=generator(4))
    targets = normal(outputs).mean + normal(outputs).stddev * noise
    unit = torch.eye(4, dtype=torch.float64)
    mean = torch.stack([hvp(lambda f: gaussian_nll(f[None], targets), outputs, u) for u in unit])
    rule = Likelihood(NAME)
    factor = rule.factor(outputs, targets[0], noise[:0])
    torch.testing.assert_close(mean, factor.mT @ factor, rtol=0, atol=0.05)
    close(rule.metric(outputs, targets[0], noise[:0], outputs), factor.mT @ factor @ outputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "exact", "variance": 2.0}, "variance=2.0: only a gaussian likelihood has one"),
        ({"kind": "empirical", "outputs": 3}, r"targets=\(4, 2\): the shape \(4, 1\) is needed"),
        ({"kind": "exact", "outputs": 3}, "width of outputs=3: an even number is needed"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    _, _, batch = problem()
    outputs_fn, params = model(perceptron(outputs=settings.pop("outputs", 4)))
    with pytest.raises(SettingError, match=f"^{message}"):
        fisher_matrix(outputs_fn, params, batch, likelihood=NAME, **settings)


def test_a_posterior_of_the_last_layer_takes_it() -> None:
    outputs_fn, params, batch = problem()
    found = laplace_posterior(outputs_fn, params, batch, likelihood=NAME, prior_precision=2.0)
    fisher = fisher_matrix(outputs_fn, params, batch, likelihood=NAME, kind="exact")
    precision = len(batch[0]) * fisher + 2.0 * torch.eye(len(fisher), dtype=torch.float64)
    close(found.covariance(), precision.inverse())


def test_the_name_that_is_older_is_another_likelihood() -> None:
    """``"gaussian"`` has one variance: with σ² = 1 its score is that of the means alone."""
    outputs_fn, params, batch = problem()
    wide = torch.cat([batch[1], batch[1]], 1)
    rule: Any = {"likelihood": "gaussian", "kind": "empirical"}
    wanted = empirical_fisher(outputs_fn, params, batch[0], wide, "gaussian")
    close(fisher_matrix(outputs_fn, params, (batch[0], wide), **rule), wanted)
