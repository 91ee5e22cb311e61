"""Fisher, GGN, Hessian and Kronecker factors against curvlinops, nngeometry and BackPACK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import (
    fisher_diagonal,
    fisher_kfac,
    fisher_matrix,
    fisher_operator,
    fisher_trace,
    ggn_operator,
    hessian_operator,
)
from tests.core.curvature.test_kfac import FORMS, PROBLEMS, blocks_of
from tests.support.curvature_oracles import close, data, flat, matrix_of, model, perceptron
from tests.support.oracles import draw


@pytest.fixture
def double_by_default() -> Iterator[None]:
    """For nngeometry, whose buffers have the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def size(params: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in params.values())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_curvlinops_has_the_same(problem: str, likelihood: Any, kind: Any, form: Any) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    if problem == "convolutional":  # curvlinops refuses uneven padding
        make = lambda: draw(  # noqa: E731
            nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.Tanh(),
                nn.Conv2d(2, 3, 2, bias=False), nn.Softplus(), nn.Flatten(), nn.Linear(12, 3),
            )
        )  # fmt: skip
    else:
        make = PROBLEMS[problem][0]
    module, shape = make(), PROBLEMS[problem][1]
    _, params = model(module)
    x, y = data(5, shape, 3, likelihood)
    loss = nn.CrossEntropyLoss() if likelihood == "categorical" else nn.MSELoss()
    theirs = curvlinops.EKFACLinearOperator if form["corrected"] else curvlinops.KFACLinearOperator
    operator = theirs(
        module, loss, list(module.parameters()), [(x, y)], check_deterministic=False,
        fisher_type="type-2" if kind == "exact" else "empirical", kfac_approx=form["sharing"],
        separate_weight_and_bias=False,
    )  # fmt: skip
    size = sum(p.numel() for p in params.values())
    expected = operator @ torch.eye(size, dtype=torch.float64)
    actual = fisher_kfac(
        module, params, (x, y), likelihood=likelihood, kind=kind,
        variance=1.0 if likelihood == "categorical" else 1 / 2, **form,
    )  # fmt: skip
    if likelihood == "gaussian":  # theirs is that of the summed squares (σ² = ½), divided by C
        expected = 3 * expected
    if form["corrected"]:  # a basis of repeated eigenvalues is not unique: compare what is
        close(actual.trace(), expected.trace(), 1e-8)
        if problem == "perceptron" and kind == "exact":
            close(actual.dense(params), expected, 1e-6)
    else:
        close(actual.dense(params), expected, 1e-8)


def test_trace_without_sharing_is_that_of_the_ggn_by_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    module = perceptron()
    _, params = model(module)
    x, y = data(5, (3,), 3, "categorical")
    ggn = curvlinops.GGNLinearOperator(
        module, nn.CrossEntropyLoss(), list(module.parameters()), [(x, y)],
        check_deterministic=False,
    )  # fmt: skip
    size = sum(p.numel() for p in params.values())
    expected = (ggn @ torch.eye(size, dtype=torch.float64)).trace()
    actual = fisher_kfac(
        module, params, (x, y), likelihood="categorical", kind="exact", corrected=True
    )
    close(actual.trace(), expected)


@pytest.mark.parametrize("name", ["GGN", "Hessian", "EF"])
def test_curvlinops_has_the_same_operators_over_batches_of_different_sizes(name: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    module = perceptron()
    outputs_fn, params = model(module)
    batches = [data(5, (3,), 3, "categorical"), data(2, (3,), 3, "categorical", seed=1)]
    loss = nn.CrossEntropyLoss()
    theirs = getattr(curvlinops, f"{name}LinearOperator")(
        module, loss, list(module.parameters()), batches, check_deterministic=False
    )
    expected = theirs @ torch.eye(size(params), dtype=torch.float64)
    if name == "Hessian":
        ours = hessian_operator(lambda p, b: loss(outputs_fn(p, b[0]), b[1]), params, batches)
    elif name == "GGN":
        ours = ggn_operator(outputs_fn, loss, params, batches)
    else:
        ours = fisher_operator(
            outputs_fn, params, batches, likelihood="categorical", kind="empirical", chunk_size=2
        )
    close(matrix_of(ours, params), expected)


@pytest.mark.parametrize(
    ("likelihood", "variant"), [("categorical", "classif_logits"), ("gaussian", "regression")]
)
@pytest.mark.usefixtures("double_by_default")
def test_nngeometry_has_the_same(likelihood: Any, variant: str) -> None:
    pytest.importorskip("nngeometry")
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatBlockDiag, PMatDense, PMatDiag, PMatKFAC

    module = perceptron()
    outputs_fn, params = model(module)
    batch = data(6, (3,), 3, likelihood)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=6)
    rule = {"likelihood": likelihood, "kind": "exact"}
    whole = fisher_matrix(outputs_fn, params, batch, **rule)
    diagonal = flat(fisher_diagonal(outputs_fn, params, batch, **rule)).diag()
    kfac = fisher_kfac(module, params, batch, **rule)
    corrected = fisher_kfac(module, params, batch, corrected=True, **rule)
    for kind, ours in (
        (PMatDense, whole), (PMatBlockDiag, blocks_of(whole, params)), (PMatDiag, diagonal),
        (PMatKFAC, kfac.dense(params)),
    ):  # fmt: skip
        theirs = FIM(
            model=module, loader=loader, representation=kind, variant=variant, device="cpu",
            layer_collection=LayerCollection.from_model(module),
        )  # fmt: skip
        close(ours, theirs.to_torch().detach(), 1e-8)
    close(corrected.trace(), whole.trace())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_backpack_has_the_same_diagonals_and_factors() -> None:
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import KFLR, DiagGGNExact, SumGradSquared

    module = perceptron()
    outputs_fn, params = model(module)
    x, y = data(6, (3,), 3, "categorical")
    extended = backpack.extend(perceptron())
    loss = backpack.extend(nn.CrossEntropyLoss())(extended(x), y)
    with backpack.backpack(DiagGGNExact(), SumGradSquared(), KFLR()):
        loss.backward()
    exact = fisher_diagonal(outputs_fn, params, (x, y), likelihood="categorical", kind="exact")
    rule = {"likelihood": "categorical", "kind": "empirical"}
    empirical = fisher_diagonal(outputs_fn, params, (x, y), **rule)
    for name, value in extended.named_parameters():
        close(exact[name], value.diag_ggn_exact)
        close(empirical[name], 6 * value.sum_grad_squared)  # theirs carries 1/N²
    kfac = fisher_kfac(module, params, (x, y), likelihood="categorical", kind="exact")
    for layer in ("0", "2"):
        weight = dict(extended.named_parameters())[f"{layer}.weight"]
        theirs = torch.kron(*weight.kflr)
        inputs = weight.shape[1]
        block = kfac.dense(params)
        rows = [i for i, n in enumerate(_names(params)) if n == f"{layer}.weight"]
        assert len(rows) == inputs * weight.shape[0]
        close(block[rows][:, rows], theirs, 1e-8)
    close(
        fisher_trace(outputs_fn, params, (x, y), **rule),
        6 * sum(value.sum_grad_squared.sum() for value in extended.parameters()),
    )


def _names(params: dict[str, Tensor]) -> list[str]:
    return [name for name, value in params.items() for _ in range(value.numel())]
