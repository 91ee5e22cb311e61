"""Consolidation, natural gradient and last-layer Laplace against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    consolidated_loss,
    consolidation_penalty,
    fisher_diagonal,
    fisher_kfac,
    fisher_matrix,
    fisher_operator,
    laplace_posterior,
    laplace_predictive,
    laplace_probabilities,
    last_layer,
    natural_gradient,
    natural_gradient_step,
    tree,
)
from metalearn.core.module.functionalize import functionalize
from metalearn.errors import SettingError
from tests.support.curvature_oracles import close, data, flat, member, model, perceptron, stacked
from tests.support.oracles import draw, generator

GAUSSIAN: Any = {"likelihood": "gaussian", "kind": "exact"}


def linear(w: Tensor, x: Tensor) -> Tensor:
    return (x @ w)[:, None]


def regression(count: int, seed: int) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    x = torch.randn(count, 3, generator=source, dtype=torch.float64)
    return x, torch.randn(count, 1, generator=source, dtype=torch.float64)


def half_squares(w: Tensor, batch: Any) -> Tensor:
    """½(f − y)², mean over samples: the negative log-likelihood with σ² = 1."""
    return 0.5 * (linear(w, batch[0]) - batch[1]).square().sum(1).mean()


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.solve(x.mT @ x, x.mT @ y[:, 0])


# --- elastic weight consolidation ------------------------------------------------------------


def test_with_the_whole_fisher_two_tasks_in_turn_are_both_at_once() -> None:
    first, second = regression(20, 0), regression(10, 1)
    anchor = least_squares(*first)
    fisher = fisher_matrix(linear, anchor, first, **GAUSSIAN)
    # 20·L1 + 10·L2, divided by 10: strength N1/N2 beside the mean loss of the second
    loss = consolidated_loss(half_squares, anchor, lambda v: fisher @ v, strength=20 / 10)
    joint = least_squares(*(torch.cat(parts) for parts in zip(first, second)))
    gradient = torch.func.grad(loss)(joint, second)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), rtol=0, atol=1e-12)
    start = torch.zeros(3).double()
    curved = torch.func.hessian(loss)(start, second)
    reached = start - torch.linalg.solve(curved, torch.func.grad(loss)(start, second))
    close(reached, joint)


def test_with_the_diagonal_the_minimum_is_the_closed_form() -> None:
    first, second = regression(20, 0), regression(10, 1)
    anchor = least_squares(*first)
    diagonal = fisher_diagonal(linear, anchor, first, **GAUSSIAN)
    close(diagonal, first[0].square().mean(0))
    strength = 3.0
    loss = consolidated_loss(half_squares, anchor, diagonal, strength=strength)
    x, y = second
    system = x.mT @ x / 10 + strength * torch.diag(diagonal)
    minimum = torch.linalg.solve(system, x.mT @ y[:, 0] / 10 + strength * diagonal * anchor)
    gradient = torch.func.grad(loss)(minimum, second)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), rtol=0, atol=1e-12)


def test_penalty_and_its_gradient_on_trees() -> None:
    outputs_fn, params = model(perceptron())
    batch = data(5, (3,), 3, "categorical")
    rule: Any = {"likelihood": "categorical", "kind": "exact"}
    diagonal = fisher_diagonal(outputs_fn, params, batch, **rule)
    kfac = fisher_kfac(perceptron(), params, batch, **rule)
    moved = {name: value + 0.1 * torch.cos(value) for name, value in params.items()}
    step = flat(moved) - flat(params)
    for fisher, dense in (
        (diagonal, flat(diagonal).diag()),
        (kfac.product, kfac.dense(params)),
    ):
        value = consolidation_penalty(moved, params, fisher, strength=2.0)
        close(value, step @ dense @ step)
        slope = torch.func.grad(consolidation_penalty)(moved, params, fisher, strength=2.0)
        close(flat(slope), 2.0 * dense @ step)
        nothing = consolidation_penalty(params, params, fisher, strength=2.0)
        assert nothing == 0
    values = torch.vmap(lambda s: consolidation_penalty(moved, params, diagonal, strength=s))(
        torch.tensor([0.0, 1.0]).double()
    )
    close(values[1], 0.5 * step @ (flat(diagonal) * step))


# --- natural gradient ------------------------------------------------------------------------


def test_one_step_reaches_least_squares() -> None:
    batch = regression(20, 2)
    start = torch.randn(3, generator=generator(0), dtype=torch.float64)
    fisher = fisher_operator(linear, start, [batch], **GAUSSIAN)
    gradient = torch.func.grad(half_squares)(start, batch)
    reached = natural_gradient_step(start, gradient, fisher, lr=1.0, damping=0.0, iterations=3)
    close(reached, least_squares(*batch))


def test_one_step_with_kronecker_factors_reaches_least_squares_of_a_linear_layer() -> None:
    module = draw(nn.Linear(3, 2))
    outputs_fn, params = model(module)
    x, y = data(20, (3,), 2, "gaussian")
    loss = lambda p: 0.5 * (outputs_fn(p, x) - y).square().sum(1).mean()  # noqa: E731
    kfac = fisher_kfac(module, params, (x, y), **GAUSSIAN)  # exact for one linear layer
    gradient = torch.func.grad(loss)(params)
    reached = natural_gradient_step(params, gradient, kfac, lr=1.0, damping=1e-13)
    slope = torch.func.grad(loss)(reached)
    assert flat(slope).norm() < 1e-10 * flat(gradient).norm()


def test_conjugate_gradients_kronecker_factors_and_dense_solves_agree() -> None:
    module = perceptron()
    outputs_fn, params = model(module)
    batch = data(5, (3,), 3, "categorical")
    rule: Any = {"likelihood": "categorical", "kind": "exact"}
    gradient = {name: torch.sin(value) for name, value in params.items()}
    dense = fisher_matrix(outputs_fn, params, batch, **rule)
    eye = torch.eye(len(dense)).double()
    operator = fisher_operator(outputs_fn, params, [batch], **rule)
    found = natural_gradient(gradient, operator, damping=0.1, iterations=len(dense))
    close(flat(found.direction), torch.linalg.solve(dense + 0.1 * eye, flat(gradient)), 1e-8)
    assert found.residual < 1e-8
    early = natural_gradient(gradient, operator, damping=0.1, iterations=2)
    assert early.residual > found.residual
    kfac = fisher_kfac(module, params, batch, corrected=True, **rule)
    found = natural_gradient(gradient, kfac, damping=0.1)
    expected = torch.linalg.solve(kfac.dense(params) + 0.1 * eye, flat(gradient))
    close(flat(found.direction), expected, 1e-8)
    assert found.residual == 0


def test_natural_gradient_inside_an_outer_vmap() -> None:
    module = perceptron()
    outputs_fn, _ = model(module)
    trees = [model(perceptron(seed=s))[1] for s in range(2)]
    batch = data(5, (3,), 3, "categorical")
    rule: Any = {"likelihood": "categorical", "kind": "exact"}

    def step(params: Any) -> Any:
        operator = fisher_operator(outputs_fn, params, [batch], **rule)
        kfac = fisher_kfac(module, params, batch, **rule)
        return [
            natural_gradient_step(params, params, fisher, lr=0.1, damping=0.1, iterations=5)
            for fisher in (operator, kfac)
        ]

    stack = torch.vmap(step)(stacked(trees))
    for m, params in enumerate(trees):
        for one, expected in zip(tree.leaves(member(stack, m)), tree.leaves(step(params))):
            close(one, expected, 1e-8)


# --- Laplace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_laplace_of_linear_regression_is_the_bayesian_posterior(chunk_size: int | None) -> None:
    x, y = regression(15, 3)
    prior, variance = 0.7, 0.4
    precision = x.mT @ x / variance + prior * torch.eye(3).double()
    mean = torch.linalg.solve(precision, x.mT @ y[:, 0] / variance)
    posterior = laplace_posterior(
        linear, mean, (x, None), likelihood="gaussian", prior_precision=prior, variance=variance,
        chunk_size=chunk_size,
    )  # fmt: skip
    close(posterior.covariance(), torch.linalg.inv(precision))
    new, _ = regression(4, 4)
    outputs, covariance = laplace_predictive(posterior, linear, new)
    close(outputs[:, 0], new @ mean)
    expected = torch.einsum("ni,ij,nj->n", new, torch.linalg.inv(precision), new)
    close(covariance[:, 0, 0], expected)


def head_of(seed: int = 0) -> tuple[Any, Any]:
    return last_layer(*functionalize(perceptron(seed=seed)), names="2.*")


def test_the_last_layer_of_a_classifier_is_logistic_regression_on_its_features() -> None:
    apply, params, buffers = functionalize(perceptron())
    outputs_fn, head = last_layer(apply, params, buffers, names="2.*")
    assert set(head) == {"2.weight", "2.bias"}
    x, _ = data(6, (3,), 3, "categorical")
    posterior = laplace_posterior(
        outputs_fn, head, (x, None), likelihood="categorical", prior_precision=0.5
    )
    features = torch.tanh(x @ params["0.weight"].mT + params["0.bias"])
    p = outputs_fn(head, x).softmax(1)
    total: Any = 0.5 * torch.eye(15).double()
    jacobian = []
    for row, chances in zip(features, p):
        weight = torch.kron(torch.eye(3).double(), row[None])
        jacobian.append(torch.cat([weight, torch.eye(3).double()], dim=1))  # [C, P]
        curvature = torch.diag(chances) - torch.outer(chances, chances)
        total = total + jacobian[-1].mT @ curvature @ jacobian[-1]
    close(posterior.covariance(), torch.linalg.inv(total))
    mean, covariance = laplace_predictive(posterior, outputs_fn, x)
    close(mean, apply(params, buffers, x))
    for row, found in zip(jacobian, covariance):
        close(found, row @ torch.linalg.inv(total) @ row.mT)


def test_probit_and_monte_carlo_probabilities() -> None:
    mean = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]).double()
    none = torch.zeros(3, 2, 2).double()
    rule: Any = {"method": "monte_carlo", "generator": generator(0)}
    close(laplace_probabilities(mean, none), mean.softmax(1))
    close(laplace_probabilities(mean, none, **rule), mean.softmax(1))
    # two classes: the difference of logits is N(m, v), E σ(·) by quadrature
    spread = torch.tensor([[1.5, 0.3], [0.3, 0.8]]).double().expand(3, 2, 2)
    variance = 1.5 + 0.8 - 0.6
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    weight = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    away = (mean[:, 0] - mean[:, 1])[:, None] + math.sqrt(variance) * grid
    expected = (torch.sigmoid(away) * weight).sum(1)
    drawn = laplace_probabilities(mean, spread, samples=20000, **rule)
    assert (drawn[:, 0] - expected).abs().max() < 4 * 0.5 / 20000**0.5
    probit = laplace_probabilities(mean, spread)
    by_hand = mean[0] / torch.sqrt(1 + math.pi / 8 * torch.tensor([1.5, 0.8]).double())
    close(probit[0], by_hand.softmax(0))
    assert probit[0].max() < mean.softmax(1)[0].max()  # less sure


def test_laplace_inside_an_outer_vmap() -> None:
    trees = [head_of(seed)[1] for seed in range(2)]
    outputs_fn, _ = head_of()
    x, _ = data(5, (3,), 3, "categorical")

    def probabilities(head: Any) -> Any:
        posterior = laplace_posterior(
            outputs_fn, head, (x, None), likelihood="categorical", prior_precision=1.0
        )
        found = laplace_predictive(posterior, outputs_fn, x)
        draws: Any = {"method": "monte_carlo", "generator": generator(3), "samples": 5}
        return (
            posterior.root,
            *found,
            laplace_probabilities(*found),
            (laplace_probabilities(*found, **draws).sum(1)),
        )

    stack = torch.vmap(probabilities, randomness="same")(stacked(trees))
    for m, head in enumerate(trees):
        for one, expected in zip(tree.leaves(member(stack, m)), tree.leaves(probabilities(head))):
            close(one, expected, 1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: consolidation_penalty(torch.ones(2), torch.ones(2), torch.ones(2), strength=-1.0),
         "strength=-1.0: a number of at least 0 is needed"),
        (lambda: consolidation_penalty({"a": torch.ones(2)}, {"b": torch.ones(2)}, torch.ones(2),
                                       strength=1.0), "anchor=.*: a tree with"),
        (lambda: natural_gradient(torch.ones(2), lambda v: v, damping=-0.1),
         "damping=-0.1: a number of at least 0 is needed"),
        (lambda: natural_gradient(torch.ones(2), lambda v: v, damping=0.1, iterations=0),
         "iterations=0: a whole number of at least 1 is needed"),
        (lambda: laplace_posterior(linear, torch.ones(3), (torch.ones(2, 3), None),
                                   likelihood="gaussian", prior_precision=0.0),
         "prior_precision=0.0: a number above 0 is needed"),
        (lambda: laplace_probabilities(torch.ones(2, 2), torch.ones(2, 2, 2), method="exact"),
         "method='exact': one of probit, monte_carlo is needed"),
        (lambda: laplace_probabilities(torch.ones(2, 2), torch.ones(2, 2, 2), method="monte_carlo"),
         "generator=None: method='monte_carlo' needs a torch.Generator"),
        (lambda: last_layer(*functionalize(perceptron()), names="head.*"),
         "names='head.*': a pattern that matches a parameter of"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call()
