"""Influence by conjugate gradients: dense solves, ridge regression, residuals.

Axes: R targets, N examples, P parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.attribution import Curvature, conjugate_gradient_influence
from metalearn.core import Likelihood, hessian_operator
from metalearn.core.tree import ravel, tree_map
from metalearn.errors import SettingError
from tests.support import curvature_oracles as dense
from tests.support.attribution_oracles import Trained, chosen, classifier, gradient_rows
from tests.support.networks import case
from tests.support.oracles import generator

close = torch.testing.assert_close
DAMPING = 2.0  # above the most negative eigenvalue of a network that was not trained


def curvatures(known: Trained) -> dict[str, tuple[Any, Tensor]]:
    """Every kind, and the matrix that it has to be."""
    inputs, labels = known.examples
    exact = dense.exact_fisher(known.outputs_fn, known.params, inputs, "categorical")
    empirical = dense.empirical_fisher(
        known.outputs_fn, known.params, inputs, labels, "categorical"
    )
    hessian = dense.hessian(lambda p: known.loss_fn(p, known.examples), known.params)
    outputs_fn = known.outputs_fn
    return {
        "hessian": ("hessian", hessian),
        "hessian as a value": (Curvature("hessian"), hessian),
        "ggn": (Curvature("ggn", outputs_fn, output_loss=F.cross_entropy), exact),
        "fisher": (Curvature("fisher", outputs_fn, likelihood="categorical"), exact),
        "empirical": (
            Curvature("fisher", outputs_fn, likelihood=Likelihood("categorical", "empirical")),
            empirical,
        ),
    }


def solved(known: Trained, matrix: Tensor, mask: Any = ..., damping: float = DAMPING) -> Tensor:
    """Scores by a dense solve, of a loop's gradients."""
    left = gradient_rows(known.loss_fn, known.params, known.targets)[:, mask]
    right = gradient_rows(known.loss_fn, known.params, known.examples)[:, mask]
    matrix = matrix[mask][:, mask] if mask is not ... else matrix
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return left @ torch.linalg.solve(matrix + damping * eye, right.mT) / len(right)


def influence(known: Trained, **settings: Any) -> Any:
    return conjugate_gradient_influence(
        known.loss_fn, known.params, known.targets, known.examples,
        **{"damping": DAMPING, "tolerance": 1e-12, **settings},
    )  # fmt: skip


KINDS = ["hessian", "hessian as a value", "ggn", "fisher", "empirical"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", [None, "2.*"])
@pytest.mark.parametrize(
    "chunks", [{}, {"chunk_size": 2, "targets_at_once": 2}, {"chunk_size": None}]
)
def test_scores_are_those_of_a_dense_solve(kind: str, parameters: Any, chunks: Any) -> None:
    known = classifier()
    choice, matrix = curvatures(known)[kind]
    found = influence(known, curvature=choice, parameters=parameters, **chunks)
    mask = chosen(known.params, "2.") if parameters else ...
    close(found.scores, solved(known, matrix, mask), rtol=1e-9, atol=1e-11)
    assert found.converged.all()
    assert found.residual.shape == (3,)
    assert (found.residual < 1e-12).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1)])
def test_one_target_or_one_example(shape: tuple[int, int]) -> None:
    known = classifier(*shape)
    choice, matrix = curvatures(known)["ggn"]
    found = influence(known, curvature=choice)
    assert found.scores.shape == shape
    close(found.scores, solved(known, matrix), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["mlp", "sequences", "cells", "tied", "attention"])
def test_networks_of_many_kinds(name: str) -> None:
    loss_fn, params, batch, module = case(name)
    known = Trained(module, lambda p, x: x, loss_fn, params, batch, batch)
    flat, unravel = ravel(params)
    hessian = torch.autograd.functional.hessian(lambda v: loss_fn(unravel(v), batch), flat)
    damping = 2 * float(torch.linalg.eigvalsh(hessian).abs().max())
    found = influence(known, damping=damping)
    close(found.scores, solved(known, hessian, damping=damping), rtol=1e-8, atol=1e-10)


def test_products_of_ones_own_are_used() -> None:
    known = classifier()
    operator = hessian_operator(known.loss_fn, known.params, [known.examples])
    close(influence(known, curvature=operator).scores, influence(known).scores)


def ridge(weights: Tensor, x: Tensor, y: Tensor, decay: float) -> Tensor:
    """The minimum of (1/N)·Σ w_i·½(x_i·θ − y_i)² + decay/2·‖θ‖²."""
    count, width = x.shape
    gram = x.mT @ (weights[:, None] * x) / count + decay * torch.eye(width, dtype=x.dtype)
    return torch.linalg.solve(gram, x.mT @ (weights * y) / count)


def test_ridge_regression_has_its_closed_form() -> None:
    x = torch.randn(9, 4, generator=generator(0), dtype=torch.float64)
    y = torch.randn(9, generator=generator(1), dtype=torch.float64)
    train, test, decay = (x[:7], y[:7]), (x[7:], y[7:]), 0.3

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return 0.5 * (batch[0] @ params["w"] - batch[1]).square().mean()

    ones = torch.ones(7, dtype=torch.float64)
    best = ridge(ones, *train, decay)
    found = conjugate_gradient_influence(
        loss_fn, {"w": best}, test, train, damping=decay, tolerance=1e-12
    ).scores
    # −r_r·x_rᵀ·(XᵀX/N + λ)⁻¹·x_i·(−r_i)/N with residuals r, written out
    inverse = torch.linalg.inv(x[:7].mT @ x[:7] / 7 + decay * torch.eye(4, dtype=torch.float64))
    left, right = ((a @ best - b)[:, None] * a for a, b in (test, train))
    close(found, left @ inverse @ right.mT / 7)

    def losses(weights: Tensor) -> Tensor:
        return 0.5 * (test[0] @ ridge(weights, *train, decay) - test[1]).square()

    for i in range(7):
        step = torch.zeros_like(ones).index_fill(0, torch.tensor(i), 1e-5)
        slope = (losses(ones + step) - losses(ones - step)) / 2e-5
        close(found[:, i], -slope, rtol=1e-6, atol=1e-10)
    # to leave an example out does about what its score says, here exactly with its leverage
    for i in range(7):
        rise = losses(ones.index_fill(0, torch.tensor(i), 0.0)) - losses(ones)
        leverage = 1 - x[i] @ inverse @ x[i] / 7
        shift = inverse @ x[i] * (best @ x[i] - y[i]) / (7 * leverage)
        expected = 0.5 * ((test[0] @ (best + shift) - test[1]) ** 2)
        close(rise, expected - losses(ones))
    signs = torch.stack(
        [losses(ones.index_fill(0, torch.tensor(i), 0.0)) - losses(ones) for i in range(7)], dim=1
    )
    assert (signs * found).sum() > 0.9 * signs.norm() * found.norm()


def test_too_few_iterations_and_negative_curvature_are_reported() -> None:
    known = classifier()
    few = influence(known, iterations=2)
    assert not few.converged.any()
    assert (few.residual > 1e-12).all()
    assert influence(known, iterations=2, tolerance=1.0).converged.all()
    hollow = influence(known, damping=0.0, tolerance=1e-6)
    smallest = torch.linalg.eigvalsh(curvatures(known)["hessian"][1])[0]
    assert smallest < -1e-3
    assert not hollow.converged.any()


def test_targets_end_by_themselves() -> None:
    """A target without a gradient has scores of zero beside others that are solved."""

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return (batch @ params["w"]).square().mean()

    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    params = {"w": torch.tensor([1.0, -0.5], dtype=torch.float64)}
    found = conjugate_gradient_influence(loss_fn, params, x, x, damping=0.1, tolerance=1e-10)
    assert not found.scores[0].any()
    assert found.converged.all()
    alone = conjugate_gradient_influence(loss_fn, params, x[1:2], x, damping=0.1, tolerance=1e-10)
    close(found.scores[1:2], alone.scores)


def test_narrow_types_are_solved_in_float32() -> None:
    known = classifier()
    half = {n: p.bfloat16() for n, p in known.params.items()}
    batches = [(x.bfloat16(), y) for x, y in (known.targets, known.examples)]
    found = conjugate_gradient_influence(
        known.loss_fn, half, *batches, damping=20.0, tolerance=0.05, iterations=20
    )
    assert found.scores.dtype == torch.float32
    assert found.converged.all()


def test_members_are_scored_under_vmap() -> None:
    known = classifier()
    scale = torch.tensor([1.0, 0.5], dtype=torch.float64)
    stacked = {n: torch.stack([s * p for s in scale]) for n, p in known.params.items()}

    def score(params: Any) -> Tensor:
        return influence(known._replace(params=params), chunk_size=None, iterations=60).scores

    looped = [score({n: p[m] for n, p in stacked.items()}) for m in range(2)]
    close(torch.func.vmap(score)(stacked), torch.stack(looped), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damping": -1.0}, "damping=-1.0: "),
        ({"damping": None}, "damping=None: "),
        ({"tolerance": 0.0}, "tolerance=0.0: "),
        ({"iterations": 0}, "iterations=0: a whole number of at least 1"),
        ({"targets_at_once": 0}, "targets_at_once=0: a whole number of at least 1"),
        ({"curvature": "ggn"}, "curvature='ggn': 'hessian' is needed, a Curvature of another"),
        ({"curvature": 3}, "curvature=3: 'hessian' is needed"),
        ({"curvature": lambda v: None}, r"curvature\(v\)=.*: a tree with"),
        ({"parameters": "head.*"}, r"parameters='head.\*': a pattern that matches"),
        ({"weights": torch.ones(6)}, r"weights='a tensor \[6\]': the shape \[7\] is needed"),
        ({"weights": -torch.ones(7)}, "weights=-1.0: "),
        ({"weights": torch.zeros(7)}, "weights=0.0: at least one weight above 0"),
        ({"weights": [1.0, 2.0]}, r"weights=\[1.0, 2.0\]: a Tensor or null is needed"),
        (
            {"weights": torch.ones(7), "curvature": lambda v: v},
            r"weights=\[7\]: None is needed where curvature is a matrix",
        ),
        (
            {
                "weights": torch.ones(7),
                "curvature": Curvature("fisher", F.linear, likelihood="categorical"),
            },
            "curvature.kind='fisher': hessian or ggn is needed with weights",
        ),
        ({"targets": (torch.ones(0, 4), torch.ones(0))}, "targets={.*}: the same number"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    known = classifier()
    if "targets" in changes:
        known = known._replace(targets=changes.pop("targets"))
    with pytest.raises(SettingError, match=message):
        influence(known, **changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fischer"}, "kind='fischer': one of hessian, ggn, fisher is needed"),
        ({"kind": "ggn"}, "outputs_fn=None: it is needed for kind='ggn'"),
        ({"kind": "ggn", "outputs_fn": F.linear}, "output_loss=None: it is needed for kind='ggn'"),
        ({"kind": "fisher", "outputs_fn": F.linear}, "likelihood=None: it is needed for kind="),
        ({"kind": "ggn", "outputs_fn": 3}, "outputs_fn=3: "),
    ],
)
def test_a_kind_needs_what_it_is_made_of(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Curvature(**fields)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("chunks", [None, 2])
@pytest.mark.parametrize("parameters", [None, "2.*"])
def test_weights_are_examples_so_many_times(kind: str, chunks: Any, parameters: Any) -> None:
    known = classifier()
    times = torch.tensor([0, 1, 3, 0, 2, 1, 1])
    again = tree_map(lambda x: x.repeat_interleave(times, 0), known.examples)
    matrix = curvatures(known._replace(examples=again))[kind][1] * int(times.sum()) / len(times)
    choice = "hessian" if kind == "hessian" else curvatures(known)[kind][0]
    found = influence(
        known, curvature=choice, weights=times.double(), chunk_size=chunks, parameters=parameters,
        damping=2 * DAMPING,
    )  # fmt: skip
    mask = ... if parameters is None else chosen(known.params, "2.")
    close(found.scores, solved(known, matrix, mask, 2 * DAMPING), rtol=1e-8, atol=1e-12)


def test_weighted_ridge_regression_moves_as_its_weights_do() -> None:
    x, y = (torch.randn(n, generator=generator(n), dtype=torch.float64) for n in (24, 8))
    x = x.reshape(8, 3)
    weights, shrink = torch.rand(8, generator=generator(2), dtype=torch.float64), 0.3

    def fitted(w: Tensor) -> Tensor:  # of (1/N)·Σ w_i·(x_i·θ − y_i)² + λ/2·‖θ‖²
        matrix = 2 * (x.mT * w) @ x / 8 + shrink * torch.eye(3, dtype=x.dtype)
        return torch.linalg.solve(matrix, 2 * (x.mT * w) @ y / 8)

    slope = torch.func.jacrev(lambda w: (x[:2] @ fitted(w) - y[:2]) ** 2)(weights)
    found = conjugate_gradient_influence(
        lambda p, batch: ((batch[0] @ p["w"] - batch[1]) ** 2).mean(),
        {"w": fitted(weights)}, (x[:2], y[:2]), (x, y),
        damping=shrink, weights=weights, tolerance=1e-12,
    )  # fmt: skip
    close(found.scores, -slope, rtol=1e-8, atol=1e-12)
