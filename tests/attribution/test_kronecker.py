"""Influence by Kronecker factors against dense float64 solves with the same matrix.

Axes: R targets, N examples, P parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.attribution import (
    Curvature,
    conjugate_gradient_influence,
    kronecker_influence,
    kronecker_self_influence,
)
from metalearn.core import fisher_kfac, functionalize
from metalearn.errors import SettingError
from tests.support.attribution_oracles import Trained, chosen, classifier, gradient_rows
from tests.support.curvature_oracles import convolutional, data, perceptron

close = torch.testing.assert_close
DAMPING = 0.01


class Sequences(nn.Module):
    """A layer over positions, their mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)).mean(1))


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "perceptron": (perceptron, (3,)),
    "convolutional": (convolutional, (1, 5, 5)),
    "sequences": (Sequences, (4, 3)),
    "groups": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 2, groups=2), nn.Flatten(), nn.Linear(12, 3)),
        (4, 3),
    ),
}


def network(name: str, targets: int = 2, examples: int = 6) -> Trained:
    make, shape = NETWORKS[name]
    known = classifier(module=make())
    x, y = data(targets + examples, shape, 3, "categorical")
    r, i = slice(targets), slice(targets, None)
    return known._replace(targets=(x[r], y[r]), examples=(x[i], y[i]))


def factors(known: Trained, **settings: Any) -> Any:
    given = {"likelihood": "categorical", "kind": "exact", "corrected": True, **settings}
    return fisher_kfac(known.module, known.params, known.examples, **given)


def solved(known: Trained, fisher: Any, mask: Any = ...) -> Tensor:
    left = gradient_rows(known.loss_fn, known.params, known.targets)[:, mask]
    right = gradient_rows(known.loss_fn, known.params, known.examples)[:, mask]
    matrix = fisher.dense(known.params)
    matrix = matrix if mask is ... else matrix[mask][:, mask]
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return left @ torch.linalg.solve(matrix + DAMPING * eye, right.mT) / len(right)


def scores(known: Trained, fisher: Any, **settings: Any) -> Tensor:
    return kronecker_influence(
        known.loss_fn, known.params, known.targets, known.examples,
        **{"fisher": fisher, "damping": DAMPING, **settings},
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("corrected", [True, False])
def test_scores_are_those_of_a_dense_solve(name: str, corrected: bool) -> None:
    known = network(name)
    fisher = factors(known, corrected=corrected)
    expected = solved(known, fisher)
    for settings in (
        {},
        {"chunk_size": 1, "targets_at_once": 1},
        {"chunk_size": None},
        {"method": "vmap"},
        {"method": "loop"},
    ):
        found = scores(known, fisher, **settings)
        assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    own = kronecker_self_influence(
        known.loss_fn, known.params, known.examples, fisher=fisher, damping=DAMPING, chunk_size=2
    )
    close(own, scores(known._replace(targets=known.examples), fisher).diagonal())
    assert (own > 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 6)])
def test_one_target_or_one_example(shape: tuple[int, int]) -> None:
    known = network("perceptron", *shape)
    fisher = factors(known)
    found = scores(known, fisher)
    assert found.shape == shape
    close(found, solved(known, fisher))


@pytest.mark.parametrize("parameters", ["2.*", ["2.weight", "2.bias"]])
def test_the_last_layer_alone(parameters: Any) -> None:
    known = network("perceptron")
    expected = solved(known, factors(known), chosen(known.params, "2."))
    close(scores(known, factors(known), parameters=parameters), expected)
    known.module[0].requires_grad_(False)  # type: ignore[index]
    _, params, _ = functionalize(known.module)
    assert sorted(params) == ["2.bias", "2.weight"]
    fisher = fisher_kfac(
        known.module, params, known.examples, likelihood="categorical", kind="exact", corrected=True
    )
    close(scores(known, fisher, parameters=parameters), expected)


def test_a_linear_model_and_one_example_need_no_approximation() -> None:
    known = network("perceptron", 2, 1)._replace(module=nn.Linear(3, 3).double())
    apply, params, buffers = functionalize(known.module)

    def outputs_fn(params: Any, inputs: Tensor) -> Tensor:
        found: Tensor = apply(params, buffers, inputs)
        return found

    def loss_fn(params: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs_fn(params, batch[0]), batch[1])

    known = known._replace(params=params, loss_fn=loss_fn, outputs_fn=outputs_fn)
    solutions = conjugate_gradient_influence(
        loss_fn, params, known.targets, known.examples, damping=DAMPING, tolerance=1e-12,
        curvature=Curvature("fisher", outputs_fn, likelihood="categorical"),
    )  # fmt: skip
    close(scores(known, factors(known)), solutions.scores)


def test_much_damping_leaves_the_products_of_gradients() -> None:
    known = network("perceptron")
    left = gradient_rows(known.loss_fn, known.params, known.targets)
    right = gradient_rows(known.loss_fn, known.params, known.examples)
    found = scores(known, factors(known), damping=1e9)
    close(1e9 * len(right) * found, left @ right.mT, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damping": 0.0}, "damping=0.0: a number above 0 is needed"),
        ({"damping": None}, "damping=None: a number above 0 is needed"),
        ({"fisher": None}, "fisher=None: a KroneckerFisher is needed"),
        ({"targets_at_once": 0}, "targets_at_once=0: a whole number of at least 1"),
        ({"parameters": "2.weight"}, "vector=.*: weight and bias of layer '2' are needed"),
        ({"parameters": "head"}, "parameters='head': a pattern that matches"),
    ],
)
def test_mistakes_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    known = network("perceptron")
    with pytest.raises(SettingError, match=message):
        scores(known, **{"fisher": factors(known), **changes})


def test_factors_that_do_not_fit_each_other_are_refused_by_layer() -> None:
    known = network("perceptron")
    whole = factors(known)
    block = whole.blocks["2"]
    for wrong, message in (
        (block._replace(eigenvalues=block.eigenvalues[0]), r"\(5,\): eigenvalues \[O, I\]"),
        (block._replace(input_basis=block.gradient_basis), ".*: bases .* are needed for its eigen"),
        (block._replace(gradient_basis=block.gradient_basis[:2]), ".*: bases .* are needed"),
    ):
        with pytest.raises(SettingError, match=rf"fisher\[2\]={message}"):
            scores(known, type(whole)({**whole.blocks, "2": wrong}))


def test_parameters_without_factors_are_named() -> None:
    known = network("perceptron")
    whole = factors(known)
    half = type(whole)({"0": whole.blocks["0"]})
    with pytest.raises(SettingError, match=r"fisher=\['0'\]: factors of 2.weight are needed, or"):
        scores(known, half)
    close(scores(known, half, parameters="0.*"), scores(known, whole, parameters="0.*"))
    with pytest.raises(SettingError, match="params='list': a dict of parameters is needed"):
        kronecker_self_influence(
            lambda p, b: p[0].sum(), [torch.ones(2)], known.examples, fisher=whole, damping=1.0
        )
