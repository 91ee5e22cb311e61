"""Lanczos, densities and traces against whole eigendecompositions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    hessian_operator,
    lanczos,
    natural_gradient,
    spectral_density,
    top_eigenvalues,
    trace_estimate,
    tree,
)
from metalearn.core.curvature.symmetry import check_symmetric
from metalearn.errors import SettingError
from tests.support.curvature_oracles import close, data, hessian, member, model, perceptron, stacked
from tests.support.oracles import generator

P = 12
LIKE = {"a": torch.zeros(2, 3).double(), "b": [torch.zeros(()).double(), torch.zeros(5).double()]}


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues."""
    noise = torch.randn(len(values), len(values), generator=generator(seed), dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    return basis @ torch.diag(values.double()) @ basis.mT


def product(matrix: Tensor) -> Callable[[Any], Any]:
    """As an operator on trees like LIKE."""
    _, unravel = tree.ravel(LIKE)
    return lambda vector: unravel(matrix @ tree.ravel(vector)[0])


SPECTRA = {
    "distinct": torch.linspace(-3, 8, P),
    "repeated": torch.tensor([2.0] * 4 + [-1.0] * 3 + [5.0] * 5),
    "low rank": torch.tensor([0.0] * 9 + [1.0, 2.0, 3.0]),
    "identity": torch.ones(P),
    "zero": torch.zeros(P),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_as_many_steps_as_parameters_give_all_eigenvalues_even_repeated_ones(name: str) -> None:
    matrix = symmetric(SPECTRA[name])
    found = lanczos(product(matrix), LIKE, iterations=P, generator=generator(1))
    close(found.basis @ found.basis.mT, torch.eye(P).double(), 1e-12)
    values, vectors = found.ritz()
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-10)
    tridiagonal = found.basis @ matrix @ found.basis.mT
    rebuilt = vectors @ torch.diag(values) @ vectors.mT
    torch.testing.assert_close(rebuilt, tridiagonal, rtol=0, atol=1e-10)


def test_orthogonal_after_many_steps_in_float32() -> None:
    values = torch.logspace(-6, 3, 200)
    matrix = symmetric(values).float()
    found = lanczos(lambda v: matrix @ v, torch.zeros(200), iterations=120, generator=generator(0))
    gram = found.basis @ found.basis.mT
    assert (gram - torch.eye(120)).abs().max() < 1e-5
    assert abs(float(found.ritz()[0][-1]) / 1000 - 1) < 1e-5


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_ritz_values_are_within_their_residuals(which: Any) -> None:
    matrix = symmetric(torch.linspace(-4, 4, P).pow(3))
    exact = torch.linalg.eigvalsh(matrix)
    top = top_eigenvalues(
        product(matrix), LIKE, count=3, iterations=8, generator=generator(2), which=which
    )
    expected = exact.flip(0)[:3] if which == "largest" else exact[:3]
    assert (top.values.diff() < 0).all() if which == "largest" else (top.values.diff() > 0).all()
    for i in range(3):
        assert (exact - top.values[i]).abs().min() <= top.residuals[i] + 1e-10
        vector = tree.ravel(member(top.vectors, i))[0]
        close(vector.norm(), torch.ones(()).double())
        left = (matrix @ vector - top.values[i] * vector).norm()
        torch.testing.assert_close(left, top.residuals[i], rtol=1e-6, atol=1e-8)
    full = top_eigenvalues(
        product(matrix), LIKE, count=3, iterations=P, generator=generator(2), which=which
    )
    close(full.values, expected)


def test_quadrature_has_the_moments_of_its_probes_and_the_density_those_of_the_matrix() -> None:
    values = torch.linspace(-1, 3, P)
    matrix = symmetric(values)
    found = spectral_density(
        product(matrix), LIKE, iterations=4, probes=3, points=4000, generator=generator(3)
    )
    close(found.weights.sum(1), torch.ones(3).double())
    source = generator(3)
    for probe in range(3):
        start = torch.randn(P, generator=source, dtype=torch.float64)
        start = start / start.norm()
        for _ in range(3):  # of the process, drawn for the case of exhaustion
            torch.randn(P, generator=source, dtype=torch.float64)
        for k in range(8):  # exact up to 2K − 1
            moment = (found.weights[probe] * found.nodes[probe] ** k).sum()
            close(moment, start @ torch.linalg.matrix_power(matrix, k) @ start, 1e-9)
    step = found.grid[1] - found.grid[0]
    close((found.density * step).sum(), torch.ones(()).double(), 1e-4)
    mean = (found.weights * found.nodes).sum(1).mean()
    close((found.density * found.grid * step).sum(), mean, 1e-3)


def test_density_with_many_probes_is_that_of_the_eigenvalues() -> None:
    values = torch.cat([torch.zeros(8), torch.tensor([3.0, 3.0, 10.0, -4.0])])
    grid = torch.linspace(-8, 14, 400, dtype=torch.float64)
    found = spectral_density(
        product(symmetric(values)), LIKE, iterations=4, probes=400, generator=generator(0),
        grid=grid, width=0.5,
    )  # fmt: skip
    bumps = torch.distributions.Normal(values.double(), 0.5).log_prob(grid[:, None]).exp()
    assert (found.density - bumps.mean(1)).abs().max() < 0.03
    assert found.density.shape == (400,) and torch.equal(found.grid, grid)


def test_density_of_a_multiple_of_the_identity() -> None:
    found = spectral_density(
        product(2 * torch.eye(P).double()), LIKE, iterations=3, generator=generator(0)
    )
    step = found.grid[1] - found.grid[0]
    close((found.density * step).sum(), torch.ones(()).double(), 1e-3)
    close(found.grid[found.density.argmax()], torch.tensor(2.0).double(), 1e-6)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_traces_are_unbiased_with_an_honest_standard_error(method: Any) -> None:
    matrix = symmetric(torch.linspace(-3, 8, P))
    runs = [
        trace_estimate(product(matrix), LIKE, products=9, generator=generator(s), method=method)
        for s in range(200)
    ]
    traces = torch.stack([run.trace for run in runs])
    errors = torch.stack([run.standard_error for run in runs])
    assert abs(traces.mean() - matrix.trace()) < 4 * traces.std() / 200**0.5
    assert 0.7 < errors.square().mean().sqrt() / traces.std() < 1.4


def test_hutchinson_is_exact_on_diagonals_and_hutch_plus_plus_on_low_rank() -> None:
    diagonal = torch.diag(torch.linspace(1, 5, P)).double()
    found = trace_estimate(product(diagonal), LIKE, products=2, generator=generator(0))
    close(found.trace, diagonal.trace())
    assert found.standard_error < 1e-10
    low = symmetric(SPECTRA["low rank"])
    plus = trace_estimate(product(low), LIKE, products=9, generator=generator(0), method="hutch++")
    close(plus.trace, low.trace(), 1e-9)
    assert plus.standard_error < 1e-9
    plain = trace_estimate(product(low), LIKE, products=9, generator=generator(0))
    assert plain.standard_error > 0.1


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_everything_inside_an_outer_vmap_over_members_and_tasks(randomness: Any) -> None:
    outputs_fn, _ = model(perceptron())
    trees = [model(perceptron(seed=s))[1] for s in range(3)]
    batches = [data(4, (3,), 3, "categorical", seed) for seed in range(2)]
    x, y = (torch.stack(parts) for parts in zip(*batches))
    size = sum(v.numel() for v in trees[0].values())

    def everything(params: Any, x: Tensor, y: Tensor) -> Any:
        def loss_fn(p: Any, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(outputs_fn(p, batch[0]), batch[1])

        operator = hessian_operator(loss_fn, params, [(x[:3], y[:3]), (x[3:], y[3:])])
        top = top_eigenvalues(operator, params, count=2, iterations=size, generator=generator(1))
        density = spectral_density(
            operator, params, iterations=5, probes=2, points=50, generator=generator(2)
        )
        traces = [
            trace_estimate(operator, params, products=6, generator=generator(3), method=method)
            for method in ("hutchinson", "hutch++")
        ]
        return top.values, top.residuals, list(density), [list(trace) for trace in traces]

    over_tasks = torch.vmap(everything, in_dims=(None, 0, 0), randomness=randomness)
    stack = torch.vmap(over_tasks, in_dims=(0, None, None), randomness=randomness)(
        stacked(trees), x, y
    )
    for m, params in enumerate(trees):
        for t in range(2):
            found = member(member(stack, m), t)
            if randomness == "same":
                alone = everything(params, x[t], y[t])
                for one, expected in zip(tree.leaves(found), tree.leaves(alone), strict=True):
                    torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-8)
            exact = torch.linalg.eigvalsh(hessian(
                lambda p, t=t: nn.functional.cross_entropy(outputs_fn(p, x[t]), y[t]), params
            ))  # fmt: skip
            close(found[0], exact.flip(0)[:2], 1e-8)
    firsts = stack[2][2][0]  # Ritz values of two tasks
    assert not torch.allclose(firsts[0], firsts[1])


def test_exhaustion_inside_a_vmap_is_each_members_own() -> None:
    matrices = torch.stack([symmetric(SPECTRA[name]) for name in ("distinct", "repeated", "zero")])

    def values(matrix: Tensor) -> Tensor:
        return lanczos(product(matrix), LIKE, iterations=P, generator=generator(1)).ritz()[0]

    found = torch.vmap(values, randomness="different")(matrices)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(matrices), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: lanczos(a, LIKE, iterations=0, generator=generator(0)),
         "iterations=0: a whole number of at least 1 is needed"),
        (lambda a: lanczos(a, LIKE, iterations=13, generator=generator(0)),
         "iterations=13: at most P = 12 are possible"),
        (lambda a: top_eigenvalues(a, LIKE, count=5, iterations=4, generator=generator(0)),
         "iterations=4: a whole number of at least 5 is needed"),
        (lambda a: top_eigenvalues(a, LIKE, count=1, iterations=4, generator=generator(0),
                                   which="both"), "which='both': one of largest, smallest"),
        (lambda a: spectral_density(a, LIKE, iterations=1, generator=generator(0)),
         "iterations=1: a whole number of at least 2 is needed"),
        (lambda a: spectral_density(a, LIKE, iterations=3, probes=0, generator=generator(0)),
         "probes=0: a whole number of at least 1 is needed"),
        (lambda a: spectral_density(a, LIKE, iterations=3, width=0.0, generator=generator(0)),
         "width=0.0: a number above 0 is needed"),
        (lambda a: trace_estimate(a, LIKE, products=1, generator=generator(0)),
         "products=1: a whole number of at least 2 is needed"),
        (lambda a: trace_estimate(a, LIKE, products=3, generator=generator(0), method="hutch++"),
         "products=3: a whole number of at least 4 is needed"),
        (lambda a: trace_estimate(a, LIKE, products=4, generator=generator(0), method="exact"),
         r"method='exact': one of hutchinson, hutch\+\+ is needed"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call(product(symmetric(SPECTRA["distinct"])))


# --- what is no symmetric matrix ---------------------------------------------------------------


def takers() -> dict[str, Callable[[Any, Any], Any]]:
    """Everything that is handed an operator."""
    common: Any = {"iterations": 3}
    return {
        "lanczos": lambda a, like: lanczos(a, like, generator=generator(0), **common),
        "top_eigenvalues": lambda a, like: top_eigenvalues(
            a, like, count=1, generator=generator(0), **common
        ),
        "spectral_density": lambda a, like: spectral_density(
            a, like, generator=generator(0), **common
        ),
        "hutchinson": lambda a, like: trace_estimate(a, like, products=4, generator=generator(0)),
        "hutch++": lambda a, like: trace_estimate(
            a, like, products=4, generator=generator(0), method="hutch++"
        ),
        "natural_gradient": lambda a, like: natural_gradient(
            tree.tree_map(torch.ones_like, like), a, damping=0.1, **common
        ),
    }


def noisy(matrix: Tensor, size: float) -> Callable[[Any], Any]:
    source, given = generator(5), product(matrix)
    draw = lambda x: x + size * torch.randn(x.shape, generator=source, dtype=x.dtype)  # noqa: E731
    return lambda vector: tree.tree_map(draw, given(vector))


SQUARE = torch.randn(P, P, generator=generator(3), dtype=torch.float64)
EVEN = symmetric(SPECTRA["distinct"])
BAD = {
    "unsymmetric": (product(SQUARE), "='not symmetric': a symmetric matrix is needed, and for"),
    "nearly": (product(EVEN + 1e-4 * SQUARE), "='not symmetric'"),
    "antisymmetric": (product(SQUARE - SQUARE.mT), "='not symmetric'"),
    "shifted": (
        lambda v: tree.tree_map(lambda x: x + 1, product(EVEN)(v)), "='not symmetric'"
    ),
    "one entry": (product(EVEN + torch.eye(P)[[1]].mT @ torch.eye(P)[[4]]), "='not symmetric'"),
    "random": (noisy(EVEN, 1.0), "='not deterministic': the same product twice is needed"),
    "a little random": (noisy(EVEN, 1e-3), "='not deterministic'"),
    "NaN": (lambda v: tree.scale(v, math.nan), "='NaN or infinite': finite products are needed"),
    "infinite": (lambda v: tree.scale(v, math.inf), "='NaN or infinite'"),
    "another tree": (lambda v: {"a": v["a"]}, r"\(v\)=\['a'\]: a tree with"),
    "another shape": (lambda v: v | {"a": v["a"][0]}, r"\(v\)\[a\]=\(3,\): the shape \(2, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("taker", takers())
def test_what_is_no_symmetric_matrix_is_refused(taker: str, name: str) -> None:
    operator, sentence = BAD[name]
    setting = "fisher" if taker == "natural_gradient" else "matvec"
    with pytest.raises(SettingError, match=setting + sentence):
        takers()[taker](operator, LIKE)


@pytest.mark.parametrize("taker", takers())
def test_the_test_takes_two_products_and_none_inside_transforms(taker: str) -> None:
    calls, even = [], product(EVEN)

    def counted(vector: Any) -> Any:
        calls.append(vector)
        return even(vector)

    takers()[taker](counted, LIKE)
    alone = len(calls)
    calls.clear()

    def inside(scale: Tensor) -> Tensor:
        found = takers()[taker](lambda v: tree.scale(counted(v), scale), LIKE)
        return tree.leaves(tuple(found))[0]

    torch.vmap(inside, randomness="different")(torch.ones(2).double())
    assert alone == len(calls) + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0, 3, 6])
def test_rounding_is_not_taken_for_a_lack_of_symmetry(dtype: torch.dtype, spread: int) -> None:
    """Products of a factor with its transpose, as those of a GGN; eigenvalues over six decades."""
    for seed in range(20):
        factor = symmetric(torch.logspace(-spread, 0, 100), seed).to(dtype)
        check_symmetric(lambda v, f=factor: f.mT @ (f @ v), torch.zeros(100, dtype=dtype))


def test_dropout_in_a_loss_is_refused_by_the_eigenvalues_of_its_hessian() -> None:
    x, y, w = (torch.randn(s, generator=generator(1)).double() for s in ((20, 6), (20,), (6,)))

    def loss(w: Tensor, batch: Any) -> Tensor:
        return (nn.functional.dropout(batch[0], 0.5) @ w - batch[1]).square().mean()

    with pytest.raises(SettingError, match="matvec='not deterministic'.*draw what is random once"):
        top_eigenvalues(
            hessian_operator(loss, w, [(x, y)]), w, count=1, iterations=3, generator=generator(0)
        )
