"""Cosines and products of gradients, and of features, against loops.

Axes: R targets, N examples.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import gradient_similarity, representation_similarity
from metalearn.errors import SettingError
from tests.support.attribution_oracles import chosen, classifier, gradient_rows

close = torch.testing.assert_close


@pytest.mark.parametrize("shape", [(3, 7), (1, 7), (3, 1), (1, 1)])
@pytest.mark.parametrize("parameters", [None, "0.*"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gradients_are_compared_as_in_a_loop(shape: Any, parameters: Any, chunk_size: Any) -> None:
    known = classifier(*shape)
    mask = chosen(known.params, (parameters or "*")[:-1])
    left = gradient_rows(known.loss_fn, known.params, known.targets)[:, mask]
    right = gradient_rows(known.loss_fn, known.params, known.examples)[:, mask]
    given: Any = (known.loss_fn, known.params, known.targets, known.examples)
    settings: Any = {"parameters": parameters, "chunk_size": chunk_size}
    close(gradient_similarity(*given, metric="dot", **settings), left @ right.mT)
    expected = torch.stack(
        [torch.stack([torch.cosine_similarity(a, b, dim=0) for b in right]) for a in left]
    )
    close(gradient_similarity(*given, **settings), expected)


def test_a_gradient_of_zero_has_a_cosine_of_zero() -> None:
    def loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (params["w"] * batch).sum(1).mean()

    params = {"w": torch.ones(2, dtype=torch.float64)}
    examples = torch.tensor([[3.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = gradient_similarity(loss, params, examples[:1], examples)
    close(found, torch.tensor([[1.0, 0.0, -1.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "lost"), [(1e-17, False), (1e-24, True), (1e-40, True), (0, True)]
)
def test_no_cosine_is_above_one_however_small_a_gradient(size: float, lost: bool) -> None:
    """Those of examples that a network has long since learnt, in float32."""

    def loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (params["w"] * batch).sum(1).mean()

    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([size, 1.0, size, 1.0, 1.0])
    examples = inputs * sizes[:, None]
    found = gradient_similarity(loss, {"w": torch.ones(3)}, examples[2:4], examples)
    expected = torch.cosine_similarity(inputs[2:4, None], inputs, dim=2)
    small = sizes != 1
    close(found, torch.where(lost & (small[2:4, None] | small), 0.0, expected))


@pytest.mark.parametrize("size", [1e-30, 1e-17, 1.0, 1e30])
def test_features_of_any_size_have_cosines(size: float) -> None:
    left, right = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    found = representation_similarity(
        lambda params, inputs: inputs, {"w": torch.ones(1)}, size * left, size * right
    )
    close(found, torch.cosine_similarity(left[:, None], right, dim=2))


def features_fn(params: Any, inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ params["0.weight"].mT)


@pytest.mark.parametrize("shape", [(3, 7), (1, 1)])
@pytest.mark.parametrize("chunk_size", [None, 2, "auto"])
def test_features_are_compared_as_in_a_loop(shape: Any, chunk_size: Any) -> None:
    known = classifier(*shape)
    targets, examples = known.targets[0], known.examples[0]
    left, right = features_fn(known.params, targets), features_fn(known.params, examples)
    measures: dict[str, Any] = {
        "dot": lambda a, b: a @ b,
        "cosine": lambda a, b: torch.cosine_similarity(a, b, dim=0),
        "euclidean": lambda a, b: -(a - b).norm(),
    }
    for metric, measure in measures.items():
        expected = torch.stack([torch.stack([measure(a, b) for b in right]) for a in left])
        found = representation_similarity(
            features_fn, known.params, targets, examples, metric=metric, chunk_size=chunk_size
        )
        close(found, expected)


def test_features_with_more_axes_are_flattened_and_those_of_zero_have_no_direction() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = representation_similarity(lambda p, x: x * p, torch.ones(()), x, x)
    close(found, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda p, x: None, "features_fn='NoneType': a floating-point tensor"),
        (lambda p, x: x.sum(), "features_fn='Tensor': a floating-point tensor"),
        (lambda p, x: x[:1], r"features_fn=\(1, 4\): features of 7 samples"),
        (lambda p: p, "features_fn=.*: a function of 2 arguments"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: Any, message: str) -> None:
    known = classifier()
    with pytest.raises(SettingError, match=message):
        representation_similarity(
            features, known.params, known.examples[0], known.examples[0], chunk_size=None
        )


def test_targets_with_other_features_than_the_examples_are_refused() -> None:
    with pytest.raises(SettingError, match="targets='2 features': 3 features of each are needed"):
        representation_similarity(
            lambda p, x: x * p, torch.ones(()), torch.ones(4, 2), torch.ones(4, 3)
        )


@pytest.mark.parametrize("function", [gradient_similarity, representation_similarity])
def test_an_unknown_metric_is_refused(function: Any) -> None:
    known = classifier()
    first = known.loss_fn if function is gradient_similarity else features_fn
    with pytest.raises(SettingError, match="metric='l2': one of cosine, dot"):
        function(first, known.params, known.targets, known.examples, metric="l2")
