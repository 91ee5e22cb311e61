"""The curvature benchmark: its references are right, its rows and figure show what was measured."""

from __future__ import annotations

import math

import pytest
import torch

from metalearn.benchmarks.curvature_problem import (
    eigenvalues,
    product_by_autograd,
    trained_conv4,
)
from metalearn.benchmarks.spectrum import (
    SpectrumRow,
    spectrum_figure,
    spectrum_race,
    spectrum_table,
)
from metalearn.core import tree
from tests.support.curvature_oracles import close, hessian

TINY = {"filters": 2, "size": 8, "classes": 2, "samples": 8, "steps": 5}


@pytest.mark.parametrize("norm", ["batch_stats", "none"])
def test_references_are_those_of_plain_autograd(norm: str) -> None:
    problem = trained_conv4(norm=norm, **TINY)  # type: ignore[arg-type]
    params = problem.params(torch.float64)
    exact = hessian(problem.loss, params)
    close(eigenvalues(problem), torch.linalg.eigvalsh(exact), 1e-8)
    product = product_by_autograd(problem)
    direction = problem.direction(torch.float64)
    close(product, exact @ direction, 1e-8)
    unravel = tree.ravel(params)[1]
    close(tree.ravel(problem.operator(params)(unravel(direction)))[0], product, 1e-8)


def test_a_race_has_rows_of_every_library_and_small_errors() -> None:
    pytest.importorskip("curvlinops")
    problem = trained_conv4(norm="none", **TINY)  # type: ignore[arg-type]
    rows, curves = spectrum_race(problem, count=2, iterations=20, points=64, members=2, rounds=1)
    found = {(row.library, row.quantity): row for row in rows}
    for library in ("metalearn", "curvlinops"):
        assert found[library, "Hessian product"].error < 1e-4
        assert found[library, "top 2 eigenvalues"].error < 1e-3
        assert found[library, "density, 20 steps"].error < 0.5
    assert math.isnan(found["metalearn, loop", "top 2 eigenvalues of 2 members"].error)
    assert [curve.library for curve in curves] == ["exact", "metalearn", "curvlinops"]
    for curve in curves:
        logs = curve.grid.log10()
        close((curve.density * (logs[1] - logs[0])).sum(), torch.ones(()).double(), 0.01)
    figure = spectrum_figure(problem.title, curves)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert [line.get_label() for line in figure.axes[0].lines] == [c.library for c in curves]


def test_through_batch_norm_our_product_is_right_and_curvlinops_is_not() -> None:
    """jvp(jacrev(loss)) has torch's own vmap between the two derivatives."""
    pytest.importorskip("curvlinops")
    problem = trained_conv4(**TINY)  # type: ignore[arg-type]
    rows, _ = spectrum_race(problem, count=1, iterations=5, points=16, members=1, rounds=1)
    errors = {row.library: row.error for row in rows if row.quantity == "Hessian product"}
    assert errors["metalearn"] < 1e-4
    assert errors["curvlinops"] > 1e-3


def test_the_table_leaves_out_what_is_not_known() -> None:
    rows = [
        SpectrumRow("Hessian product", "metalearn", 0.0123, 2e-7),
        SpectrumRow("members", "metalearn, loop", 1.0, math.nan),
    ]
    assert spectrum_table(rows).splitlines()[2:] == [
        "| Hessian product | metalearn | 12 | 2e-07 |",
        "| members | metalearn, loop | 1000 |  |",
    ]
