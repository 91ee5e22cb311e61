"""Products that are computed as the transpose of their transpose, which is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import compiled
from metalearn.core.compilation.products import with_wide_products
from metalearn.core.compilation.trace import traced

_T = 3
FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bmm": torch.bmm,
    "bmm with a vector": lambda a, b: torch.baddbmm(b.sum(1, keepdim=True), a, b),
    "bmm with a matrix": lambda a, b: torch.baddbmm(a.sum(2, keepdim=True) + b[:, :1], a, b),
    "mm": lambda a, b: torch.mm(a[0], b[1]),
    "mm with a vector": lambda a, b: torch.addmm(b[0, 0], a[0], b[1]),
    "mm with a matrix": lambda a, b: torch.addmm(a[0, :, :1] + b[0, 0], a[0], b[1]),
}

RESULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda product: product,
    "a part of more": lambda product: (product.relu() ** 2).sum(-1),
    "its memory": lambda product: torch.as_strided(product, (5, 3), (2, 7), 4) * 1.0,
    "a view": lambda product: product.view(-1)[2:9].sin(),
}


def _factors(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(rows + columns)
    sizes = (_T, rows, 7), (_T, 7, columns)
    return [torch.randn(size, generator=random, dtype=torch.float64).to(dtype) for size in sizes]


def _products(graph: torch.fx.GraphModule, factors: list[Tensor]) -> list[tuple[int, ...]]:
    """The shapes of all products of matrices that a graph takes."""
    seen: list[tuple[int, ...]] = []

    class Watching(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            found = super().call_function(target, args, kwargs)
            if any(name in str(target) for name in ("mm.", "matmul")):
                seen.append(tuple(found.shape))
            return found

    Watching(graph).run(*factors)
    return seen


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="of MKL alone")
def test_narrow_products_are_wide_and_the_same(form: str, result: str) -> None:
    """Held to float64; what is given back is laid out as before."""
    of = FORMS[form]

    def function(a: Tensor, b: Tensor) -> Tensor:
        return RESULTS[result](of(a, b))

    factors = _factors(20, 5)
    trace = traced(function, factors)
    before = str(trace.graph.graph)
    wide = with_wide_products(trace.graph)
    (shape,) = _products(wide, factors)
    assert shape[-2:] == (5, 20)
    wanted = function(*(factor.double() for factor in factors))
    found = wide(*factors)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert found.stride() == function(*factors).stride()
    assert str(trace.graph.graph) == before  # by which it is known


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    [
        (20, 16, torch.float32),
        (15, 5, torch.float32),
        (20, 1, torch.float32),
        (20, 5, torch.float64),
    ],
)
def test_others_stay_as_they_are(form: str, rows: int, columns: int, dtype: torch.dtype) -> None:
    factors = _factors(rows, columns, dtype)
    graph = traced(FORMS[form], factors).graph
    assert with_wide_products(graph).code.strip() == graph.code.strip()


def test_on_other_devices_they_stay_as_they_are() -> None:
    graph = traced(torch.bmm, _factors(20, 5)).graph
    for node in graph.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = node.meta["val"].to("meta")
    assert with_wide_products(graph).code.strip() == graph.code.strip()


def test_a_sum_with_factors_of_its_own_stays_as_it_is() -> None:
    factors = _factors(20, 5)
    function = lambda a, b: torch.baddbmm(b[:, :1], a, b, beta=0.5, alpha=2.0)  # noqa: E731
    graph = traced(function, factors).graph
    torch.testing.assert_close(with_wide_products(graph)(*factors)[0], function(*factors))


def test_compiled_functions_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derivatives of a network with few outputs, by the compiler that runs each operation."""
    taken: list[Any] = []
    real = with_wide_products

    def watching(graph: Any) -> Any:
        taken.append(_products(real(graph), [x, w]))
        return real(graph)

    def function(x: Tensor, w: Tensor) -> Any:
        return torch.func.grad(lambda w: (x @ w).square().sum())(w)

    x, w = torch.randn(20, 30), torch.randn(30, 5)
    monkeypatch.setattr("metalearn.core.compilation.function.with_wide_products", watching)
    found = compiled(function, compiler="aot_eager")(x, w)
    torch.testing.assert_close(found, function(x, w))
    if torch.backends.mkl.is_available():
        assert taken == [[(5, 20), (5, 30)]]
