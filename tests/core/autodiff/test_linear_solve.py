"""Conjugate gradients on one task and on several, and when they end.

Axes: T tasks, P parameters.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metalearn.core.autodiff.linear_solve import conjugate_gradients
from tests.support.oracles import generator

close = torch.testing.assert_close


def systems(*condition: float) -> tuple[Tensor, Tensor]:
    """Positive definite matrices ``[T, P, P]`` of these conditions, and right sides ``[T, P]``."""
    count, size = len(condition), 8
    noise = torch.randn(count, size, size, generator=generator(0), dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    values = [torch.linspace(1, c, size, dtype=torch.float64) for c in condition]
    matrices = basis @ torch.diag_embed(torch.stack(values)) @ basis.mT
    return matrices, torch.randn(count, size, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("tolerance", [None, 1e-10, 1e-2])
def test_it_ends_once_all_residuals_are_small(tolerance: float | None) -> None:
    matrices, target = systems(1.0, 3.0, 30.0)
    products = []

    def product(values: list[Tensor]) -> list[Tensor]:
        products.append(1)
        return [(matrices @ values[0][..., None])[..., 0]]

    like = torch.zeros(3, dtype=torch.float64)
    found, residual = conjugate_gradients(product, [target], like, 20, tolerance=tolerance)
    exact = torch.linalg.solve(matrices, target[..., None])[..., 0]
    within = {None: 1e-10, 1e-10: 1e-9, 1e-2: 0.1}[tolerance]
    close(found[0], exact, rtol=0, atol=within * float(exact.abs().max()))
    error = (matrices @ found[0][..., None])[..., 0] - target
    close(residual, error.norm(dim=1) / target.norm(dim=1), rtol=1e-5, atol=1e-14)
    assert (residual <= (tolerance or 1e-12) * 1.001).all()
    assert len(products) == 21 if tolerance is None else 2 < len(products) < 12  # and one after


def test_tasks_without_an_answer_do_not_keep_it_going() -> None:
    matrices, target = systems(1.0, 1.0)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    products = []

    def product(values: list[Tensor]) -> list[Tensor]:
        products.append(1)
        return [signs * (matrices @ values[0][..., None])[..., 0]]

    like = torch.zeros(2, dtype=torch.float64)
    found, residual = conjugate_gradients(product, [target], like, 50, tolerance=1e-8)
    assert not found[0][1].any()
    close(residual[1], torch.ones_like(residual[1]))
    close(found[0][0], target[0])
    assert len(products) < 5
    nothing, residual = conjugate_gradients(product, [0 * target], like, 50, tolerance=1e-8)
    assert not nothing[0].any()
    assert not residual.any()
