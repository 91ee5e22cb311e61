"""Labels in Fisher matrices and scores: padding has no gradient, others are refused.

Axes: N samples, C classes, P parameters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    fisher_blocks,
    fisher_diagonal,
    fisher_kfac,
    fisher_matrix,
    fisher_operator,
    fisher_trace,
    fisher_vp,
    functionalize,
)
from metalearn.core.bayes.predictive import brier_scores, is_correct, negative_log_likelihoods
from metalearn.core.tree import ravel
from metalearn.errors import SettingError

torch.manual_seed(0)
NET = nn.Linear(4, 3).double()
APPLY, PARAMS, BUFFERS = functionalize(NET)
X = torch.randn(5, 4, dtype=torch.float64)
PADDED = torch.tensor([0, -100, 2, 1, -100])
EMPIRICAL: dict[str, Any] = {"likelihood": "categorical", "kind": "empirical"}


def outputs_fn(params: Any, inputs: Tensor) -> Tensor:
    found: Tensor = APPLY(params, BUFFERS, inputs)
    return found


def oracle(targets: Tensor) -> Tensor:
    """1/N Σ g·gᵀ of cross-entropies, by backward passes of single samples; N counts all."""
    rows = []
    for i in range(len(X)):
        loss = F.cross_entropy(NET(X[i : i + 1]), targets[i : i + 1], reduction="sum")
        grads = torch.autograd.grad(loss, [NET.weight, NET.bias])
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    gradients = torch.stack(rows)
    return gradients.T @ gradients / len(X)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("targets", [PADDED, torch.full((5,), -100)])
def test_padding_has_no_gradient_in_fisher_matrices(targets: Tensor, chunk_size: Any) -> None:
    expected, kwargs = oracle(targets), {**EMPIRICAL, "chunk_size": chunk_size}
    batch = (X, targets)
    matrix = fisher_matrix(outputs_fn, PARAMS, batch, **kwargs)
    torch.testing.assert_close(matrix, expected)
    diagonal, _ = ravel(fisher_diagonal(outputs_fn, PARAMS, batch, **kwargs))
    torch.testing.assert_close(diagonal, expected.diagonal())
    trace = fisher_trace(outputs_fn, PARAMS, batch, **kwargs)
    torch.testing.assert_close(trace, expected.trace())
    blocks = fisher_blocks(outputs_fn, PARAMS, batch, **kwargs)
    torch.testing.assert_close(blocks["weight"], expected[:12, :12])
    flat, unravel = ravel({n: torch.randn_like(p) for n, p in PARAMS.items()})
    product, _ = ravel(fisher_vp(outputs_fn, PARAMS, batch, unravel(flat), **kwargs))
    torch.testing.assert_close(product, expected @ flat)
    kron = fisher_kfac(NET, PARAMS, batch, corrected=True, **kwargs)
    torch.testing.assert_close(kron.trace(), expected.trace())


def test_padding_inside_vmap() -> None:
    both = torch.stack([PADDED, torch.tensor([1, 1, 0, -100, 2])])

    def trace(targets: Tensor) -> Tensor:
        return fisher_trace(outputs_fn, PARAMS, (X, targets), **EMPIRICAL)

    expected = torch.stack([oracle(targets).trace() for targets in both])
    torch.testing.assert_close(torch.vmap(trace)(both), expected)


BAD = [
    (torch.tensor([0, 7, 2, 1, 1]), r"^targets=7: a class in 0\.\.2 is needed"),
    (torch.tensor([1, 2, 3, 1, 1]), r"^targets=3: a class in 0\.\.2 is needed"),
    (torch.tensor([0, -1, 2, 1, 1]), r"^targets=-1: a class in 0\.\.2 is needed"),
    (torch.rand(5), r"^targets='torch.float32': class indices, whole numbers"),
    (torch.ones(5, dtype=torch.bool), r"^targets='torch.bool': class indices"),
]


@pytest.mark.parametrize(("targets", "message"), BAD)
def test_labels_that_cross_entropy_refuses(targets: Tensor, message: str) -> None:
    batch, vector = (X, targets), PARAMS
    for run in (
        lambda: fisher_matrix(outputs_fn, PARAMS, batch, **EMPIRICAL),
        lambda: fisher_diagonal(outputs_fn, PARAMS, batch, **EMPIRICAL),
        lambda: fisher_trace(outputs_fn, PARAMS, batch, **EMPIRICAL),
        lambda: fisher_blocks(outputs_fn, PARAMS, batch, **EMPIRICAL),
        lambda: fisher_vp(outputs_fn, PARAMS, batch, vector, **EMPIRICAL),
        lambda: fisher_kfac(NET, PARAMS, batch, **EMPIRICAL),
        lambda: fisher_operator(outputs_fn, PARAMS, [batch], **EMPIRICAL),
    ):
        with pytest.raises(SettingError, match=message):
            run()
    exact = {"likelihood": "categorical", "kind": "exact"}
    fisher_trace(outputs_fn, PARAMS, batch, **exact)  # which does not look at targets


def test_probabilities_have_no_empirical_fisher() -> None:
    soft = torch.softmax(torch.randn(5, 3), -1)
    with pytest.raises(SettingError, match=r"^targets=\(5, 3\): the shape \(5,\) is needed"):
        fisher_trace(outputs_fn, PARAMS, (X, soft), **EMPIRICAL)


@pytest.mark.parametrize("score", [negative_log_likelihoods, brier_scores, is_correct])
def test_scores_of_labels_that_are_no_class(score: Any) -> None:
    log_p = torch.randn(2, 5, 3).log_softmax(-1)
    assert score(log_p, torch.tensor([0, 1, 2, 1, 1])).shape == (2, 5)
    for targets, message in BAD:
        with pytest.raises(SettingError, match=message):
            score(log_p, targets)
    with pytest.raises(SettingError, match=r"^targets=-100: a class in 0\.\.2 is needed$"):
        score(log_p, PADDED)
