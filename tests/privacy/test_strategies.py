"""Bands of correlated noise and the error that they leave, against dense matrices.

Axes: n steps, b bands.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import optimize
from torch import Tensor

from metalearn.errors import SettingError
from metalearn.privacy import banded_strategy, prefix_error
from metalearn.privacy.strategies import _log_error


def dense(strategy: Tensor, steps: int) -> Tensor:
    """S ``[n, n]``, entry by entry."""
    found = torch.zeros(steps, steps, dtype=torch.float64)
    for row in range(steps):
        for column in range(max(0, row - len(strategy) + 1), row + 1):
            found[row, column] = strategy[row - column]
    return found


def dense_error(strategy: Tensor, steps: int) -> float:
    """Root of the mean variance of sums of noise, from the inverse of the whole matrix."""
    sums = torch.tril(torch.ones(steps, steps, dtype=torch.float64))
    rows = sums @ torch.linalg.inv(dense(strategy, steps))
    return float(strategy.double().norm() * rows.square().sum(1).mean().sqrt())


def square_root(bands: int) -> Tensor:
    """Coefficients of (1 − x)^(−1/2): binomial(2k, k)/4^k."""
    return torch.tensor([math.comb(2 * k, k) / 4**k for k in range(bands)], dtype=torch.float64)


@pytest.mark.parametrize(("steps", "bands"), [(1, 1), (7, 1), (7, 3), (16, 16), (75, 6)])
def test_the_error_is_that_of_the_dense_inverse(steps: int, bands: int) -> None:
    draws = torch.Generator().manual_seed(steps + bands)
    for strategy in (
        banded_strategy(steps, bands),
        square_root(bands),
        torch.cat([torch.ones(1), 0.3 / bands * torch.randn(bands - 1, generator=draws)]).double(),
    ):
        assert prefix_error(strategy, steps) == pytest.approx(
            dense_error(strategy, steps), rel=1e-9
        )
        assert prefix_error(3 * strategy, steps) == pytest.approx(prefix_error(strategy, steps))


def test_errors_in_closed_form() -> None:
    assert prefix_error(torch.ones(1), 99) == pytest.approx(math.sqrt(100 / 2), rel=1e-12)
    n = 300  # S = A^(1/2), so that A·S⁻¹ is A^(1/2) again
    root = square_root(n)
    mean = sum((n - k) / n * float(r) ** 2 for k, r in enumerate(root))
    exact = math.sqrt(float(root.square().sum()) * mean)
    assert prefix_error(root, n) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("steps", "bands"), [(8, 2), (8, 8), (40, 5), (2000, 16)])
def test_it_is_no_worse_than_the_square_root_and_of_norm_one(steps: int, bands: int) -> None:
    found = banded_strategy(steps, bands)
    assert found.dtype == torch.float64 and found.shape == (bands,)
    assert float(found.norm()) == pytest.approx(1, abs=1e-12)
    assert prefix_error(found, steps) < prefix_error(square_root(bands), steps)
    for rows in (1, bands - 1, bands, 2 * bands):
        columns = dense(found, rows).square().sum(0).sqrt()
        assert columns.max() <= 1 + 1e-12


@pytest.mark.parametrize(("steps", "bands"), [(8, 3), (12, 5), (60, 4)])
def test_another_minimiser_finds_no_better_one(steps: int, bands: int) -> None:
    """Nelder and Mead's simplex over errors of the dense matrix, from two places."""
    ours = dense_error(banded_strategy(steps, bands), steps)

    def error(rest: Any) -> float:
        return dense_error(torch.tensor([1.0, *rest], dtype=torch.float64), steps)

    for start in (square_root(bands)[1:], torch.zeros(bands - 1)):
        simplex: Any = {"xatol": 1e-7, "fatol": 1e-11, "maxfev": 1500, "adaptive": True}
        theirs = optimize.minimize(error, start.numpy(), method="Nelder-Mead", options=simplex)
        assert ours <= theirs.fun * (1 + 1e-9)
    assert ours == pytest.approx(theirs.fun, rel=1e-6)


def test_toeplitz_bands_are_nearly_the_best_of_all_matrices() -> None:
    """The least tr(A·X⁻¹·Aᵀ) over X = SᵀS with a diagonal of ones, for n = b = 8: 3.3 % less."""
    n = 8
    sums = torch.tril(torch.ones(n, n, dtype=torch.float64))
    raw = torch.eye(n, dtype=torch.float64).requires_grad_()
    descent = torch.optim.LBFGS(
        [raw], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def mean_square() -> Tensor:
        columns = raw / raw.norm(dim=0)
        return (sums @ torch.linalg.inv(columns)).square().sum() / n

    def closure() -> float:
        descent.zero_grad()
        value = mean_square()
        value.backward()
        return float(value.detach())

    descent.step(closure)
    best = math.sqrt(float(mean_square().detach()))
    ours = prefix_error(banded_strategy(n, n), n)
    assert best < ours < 1.035 * best, (best, ours)


def test_the_slope_is_that_of_finite_differences() -> None:
    draws = torch.Generator().manual_seed(0)
    rest = square_root(6)[1:] + 0.05 * torch.randn(5, generator=draws, dtype=torch.float64)
    _, slope = _log_error(rest, 50)
    for number in range(5):
        move = torch.zeros(5, dtype=torch.float64)
        move[number] = 1e-5
        up, down = (_log_error(rest + sign * move, 50)[0] for sign in (1, -1))
        assert float(slope[number]) == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8)


def test_more_bands_leave_less_error_and_the_same_arguments_the_same_bands() -> None:
    errors = [prefix_error(banded_strategy(400, bands), 400) for bands in (1, 2, 4, 8, 64, 400)]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == 6
    first = banded_strategy(400, 8)
    again = banded_strategy(400, 8)
    assert torch.equal(first, again)
    again[0] = 0  # what a caller does to it stays with the caller
    assert torch.equal(banded_strategy(400, 8), first)
    assert torch.equal(banded_strategy(50, 1), torch.ones(1, dtype=torch.float64))
    assert torch.equal(banded_strategy(10**8, 2), banded_strategy(2**16, 2))


def test_bad_input_is_refused() -> None:
    cases: list[tuple[Any, str]] = [
        (lambda: banded_strategy(0, 1), "steps=0: "),
        (lambda: banded_strategy(5, 0), "bands=0: "),
        (lambda: banded_strategy(5, 6), "bands=6: a whole number of at most 5"),
        (lambda: prefix_error(torch.ones(3), 2), r"strategy=\[3\]: numbers \[b\] with b in 1..2"),
        (lambda: prefix_error(torch.ones(2, 2), 9), r"strategy=\[2, 2\]: numbers"),
        (lambda: prefix_error(torch.ones(0), 9), r"strategy=\[0\]: numbers"),
        (lambda: prefix_error(torch.ones(2, dtype=torch.int64), 9), "floating-point tensor"),
        (lambda: prefix_error(torch.tensor([0.0, 1.0]), 9), "the first of them above 0"),
        (lambda: prefix_error(torch.tensor([1.0, math.nan]), 9), "finite numbers are needed"),
        (lambda: prefix_error(torch.ones(1), 0), "steps=0: "),
    ]
    for call, said in cases:
        with pytest.raises(SettingError, match=said):
            call()
