"""Class weights in the loss of a single sample: kept, or refused where a mean takes them away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import clipped_gradient, functionalize, per_sample_gradients, per_sample_norms
from metalearn.errors import SettingError
from tests.support.oracles import draw, generator

METHODS = ("layers", "vmap", "loop")
WEIGHT = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
ENTRIES: dict[str, Callable[..., Any]] = {
    "gradients": per_sample_gradients,
    "norms": per_sample_norms,
    "clipped": lambda *args, **kwargs: clipped_gradient(*args, max_norm=0.1, **kwargs),
}
LABELS = torch.tensor([0, 1, 2, 2, 1])


def problem(criterion: Callable[..., Tensor]) -> tuple[Any, dict[str, Tensor]]:
    apply, params, buffers = functionalize(draw(nn.Linear(4, 3)))

    def loss(params: Any, batch: Any) -> Tensor:
        return criterion(apply(params, buffers, batch[0]), batch[1])

    return loss, params


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, dtype=torch.float64, generator=generator(1))


def by_autograd(loss: Any, params: dict[str, Tensor], batch: Any) -> dict[str, Tensor]:
    """Row by row, by ordinary autograd."""
    rows = []
    for x, y in zip(*batch):
        values = {name: value.clone().requires_grad_() for name, value in params.items()}
        grads = torch.autograd.grad(loss(values, (x[None], y[None])), list(values.values()))
        rows.append(dict(zip(values, grads)))
    return {name: torch.stack([row[name] for row in rows]) for name in params}


def log_likelihood(logits: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    return F.nll_loss(logits.log_softmax(1), targets, **settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("cross_entropy", lambda z, y: F.cross_entropy(z, y, weight=WEIGHT)),
        ("cross_entropy", lambda z, y: F.cross_entropy(z, y, WEIGHT, label_smoothing=0.1)),
        ("cross_entropy", nn.CrossEntropyLoss(WEIGHT)),
        ("nll_loss", lambda z, y: log_likelihood(z, y, weight=WEIGHT)),
    ],
)
def test_a_mean_over_one_label_is_refused(
    name: str, criterion: Callable[..., Tensor], entry: str, method: str
) -> None:
    loss, params = problem(criterion)
    with pytest.raises(SettingError, match=rf"^loss_fn='{name}\(weight=…\)': reduction='sum' is"):
        ENTRIES[entry](loss, params, (inputs(5), LABELS), method=method)


def test_without_the_refusal_the_weights_would_be_gone() -> None:
    batch = inputs(5), LABELS
    weighted, params = problem(nn.CrossEntropyLoss(WEIGHT))
    plain, _ = problem(nn.CrossEntropyLoss())
    for name, grad in by_autograd(weighted, params, batch).items():
        torch.testing.assert_close(grad, by_autograd(plain, params, batch)[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("criterion", "shape", "targets"),
    [
        (lambda z, y: F.cross_entropy(z, y, WEIGHT, reduction="sum"), (5,), LABELS),
        (lambda z, y: F.cross_entropy(z, y, WEIGHT, None, -100, None, "sum"), (5,), LABELS),
        (
            lambda z, y: F.cross_entropy(z.transpose(1, 2), y, weight=WEIGHT),
            (5, 3),
            torch.stack([LABELS, LABELS.flip(0), LABELS], 1),
        ),
        (
            lambda z, y: F.cross_entropy(z, y, weight=WEIGHT),
            (5,),
            torch.eye(3, dtype=torch.float64)[LABELS],
        ),
        (lambda z, y: F.cross_entropy(z, y), (5,), LABELS),
    ],
    ids=["sum", "sum by position", "several labels", "probabilities", "no weights"],
)
def test_weights_that_mean_something_are_taken(
    criterion: Callable[..., Tensor], shape: tuple[int, ...], targets: Tensor, method: Any
) -> None:
    loss, params = problem(criterion)
    batch = inputs(*shape), targets
    wanted = by_autograd(loss, params, batch)
    found = per_sample_gradients(loss, params, batch, method=method)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-12, atol=1e-12)
