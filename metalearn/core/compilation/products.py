"""Products of matrices in the form in which a processor's library computes them fastest.

Axes: T products at once; of each, m rows and n columns.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["with_wide_products"]

_NARROW = 16
"""Columns of a product, below which MKL takes 1.1 to 4 times as long in float32 as for its
transpose; measured with AVX2, with as many rows and more."""

_aten = torch.ops.aten
_PRODUCTS: dict[Any, Any] = {
    _aten.bmm.default: _aten.bmm.default,
    _aten.baddbmm.default: _aten.bmm.default,
    _aten.mm.default: _aten.mm.default,
    _aten.addmm.default: _aten.mm.default,
}
"""By an operation, the product in it."""


def with_wide_products(graph: fx.GraphModule) -> fx.GraphModule:
    """The same graph with (BᵀAᵀ)ᵀ in place of AB where that is narrow, and MKL computes it.

    Such are the outputs of ten classes. Products of float32 on a processor alone are concerned;
    results are laid out as they were.

    Args:
        graph: of operations of torch, with what each gave when it was traced; not changed.
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return graph
    found = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    for node in [node for node in found.graph.nodes if _is_narrow(node)]:
        _turn(found.graph, node)
    found.recompile()
    return found


def _is_narrow(node: fx.Node) -> bool:
    if node.target not in _PRODUCTS or node.kwargs:
        return False
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return False
    rows, columns = value.shape[-2:]  # one column is no product to torch's compiler
    return value.device.type == "cpu" and 1 < columns < _NARROW <= rows


def _turn(graph: fx.Graph, node: fx.Node) -> None:
    """Compute the transpose of a product, and what is added to it afterwards."""
    *added, one, other = node.args

    def transposed(value: Any) -> fx.Node:
        return graph.call_function(_aten.transpose.int, (value, -2, -1))

    with graph.inserting_before(node):
        product = graph.call_function(_PRODUCTS[node.target], (transposed(other), transposed(one)))
        found = transposed(product)
        for value in added:
            found = graph.call_function(_aten.add.Tensor, (found, value))
        # laid out as it was, which views rely on; compiled, it is a part of what reads it
        rows: dict[str, Any] = {"memory_format": torch.contiguous_format}
        found = graph.call_function(_aten.clone.default, (found,), rows)
    node.replace_all_uses_with(found)
    graph.erase_node(node)
