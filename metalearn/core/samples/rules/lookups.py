"""Rows of a table by index: embeddings.

Bags in rows of equal length are met as the embedding that they are made of; see
`ops.decomposed_operations`.
Axes: V rows, D numbers of a row, B bags, L words of all bags.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.samples.layer_rules import LayerCall, LayerRule
from metalearn.core.samples.outer_products import IndexedRows
from metalearn.core.samples.sample_gradients import SampleGradients

__all__ = ["RULES"]


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> LayerCall | None:
    if max_norm is not None or scale_grad_by_freq or sparse or weight.dim() != 2:
        return None
    length = len(weight)

    def of_weight(dz: Tensor, index: Tensor) -> SampleGradients:
        if padding_idx is not None:
            dz = dz * (index != padding_idx % length).unsqueeze(-1)
        return IndexedRows(index, dz, length)

    return LayerCall(
        run=lambda weight: F.embedding(input, weight, padding_idx),
        inputs=(input,),
        parameters=(weight,),
        gradients=(of_weight,),
    )


def _indexed(table: Tensor, index: Any) -> LayerCall | None:
    """``table[index]`` with whole numbers."""
    whole = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
    if not whole or table.dim() != 2:
        return None
    length = len(table)
    return LayerCall(
        run=lambda table: table[index],
        inputs=(index,),
        parameters=(table,),
        gradients=(lambda dz, index: IndexedRows(index % length, dz, length),),
    )


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> LayerCall | None:
    """Of bags in one row, which begin at offsets: ``shares [B, L] @ rows [L, D]``."""
    if offsets is None or input.dim() != 1 or mode not in ("sum", "mean"):
        return None
    if max_norm is not None or scale_grad_by_freq or sparse or weight.dim() != 2:
        return None
    length = len(weight)
    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(len(input), device=input.device)
    bag = (starts.unsqueeze(1) <= places).sum(0) - 1
    bags = torch.arange(len(starts), device=input.device)
    shares = (bag == bags.unsqueeze(1)).to(weight.dtype)
    if padding_idx is not None:
        shares = shares * (input != padding_idx % length)
    if per_sample_weights is not None:
        shares = shares * per_sample_weights
    if mode == "mean":
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1)
    return LayerCall(
        run=lambda weight: shares @ F.embedding(input, weight),
        inputs=(input, shares),
        parameters=(weight,),
        gradients=(lambda dz, index, shares: IndexedRows(index, shares.mT @ dz, length),),
        quick=True,
    )


RULES: dict[Any, LayerRule] = {
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch.Tensor.__getitem__: _indexed,
}
