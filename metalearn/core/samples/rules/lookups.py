"""Rows of a table by index: embeddings.

An embedding bag is met as the embedding that it is made of; see `ops.decomposed_operations`.
Axes: V rows, D numbers of a row.
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


RULES: dict[Any, LayerRule] = {F.embedding: _embedding, torch.Tensor.__getitem__: _indexed}
