"""How a trainer comes by gradients of samples of many models, a few at a time.

Axes: G models (members, tasks), N samples of each, n samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from metalearn.core.samples.gradients import SampleMethod, gradients_taker
from metalearn.core.tree import leaves, tree_map
from metalearn.core.vectorization import vmapped_or_looped
from metalearn.trainers.diagnostics.protocol import GradientChunk
from metalearn.types import Batch, LossFn, Params

__all__ = ["batch_dependence", "sample_blocks", "within_budget"]

_BUDGET = 2**27  # bytes of gradients that are held at once


def batch_dependence(module: nn.Module) -> str:
    """Why samples of a batch depend on each other; empty where they do not."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            return (
                f"{type(layer).__name__} {name} normalises with statistics of the batch, so no "
                "sample has a gradient of its own; GroupNorm in its place would do"
            )
    return ""


def within_budget(params: Params, models: int, samples: int, columns: int = 1) -> tuple[int, int]:
    """How many models, and how many samples of each, are taken at once within 128 MB.

    Args:
        params: leaves ``[G, ...]``.
        models: G.
        samples: N.
        columns: gradients of each sample.
    """
    size = sum(p.numel() // len(p) * p.element_size() for p in leaves(params))
    room = max(1, _BUDGET // max(1, size * columns))
    return max(1, min(models, room // samples)), min(samples, room)


def sample_blocks(
    loss_of: Callable[[Any], LossFn],
    params: Params,
    extra: Any,
    batch: Batch,
    *,
    method: SampleMethod = "layers",
) -> Iterator[Iterator[GradientChunk]]:
    """Gradients of each sample of each model; every sample is seen as a batch of one.

    What vmap cannot take is taken one model and one sample after another.

    Args:
        loss_of: from what a model has beside parameters to its mean loss.
        params: by name, leaves ``[G, ...]``; expanded ones cost nothing.
        extra: leaves ``[G, ...]``, or an empty tree.
        batch: leaves ``[G, N, ...]``.
        method: as for `metalearn.core.per_sample_gradients`.
    """
    models, samples = leaves(batch)[0].shape[:2]
    block, size = within_budget(params, models, samples)

    def take(params: Params, extra: Any, part: Batch) -> Any:
        return gradients_taker(loss_of(extra), params, method)(part)

    def looped(*trees: Any) -> Any:
        rows = []
        for g in range(len(leaves(trees)[0])):
            params, extra, part = tree_map(lambda x, g=g: x[g], trees)
            rows.append(gradients_taker(loss_of(extra), params, "loop")(part))
        return tree_map(lambda *values: torch.stack(values), *rows)

    def chunks(start: int) -> Iterator[GradientChunk]:
        def rows(tree: Any) -> Any:
            return tree_map(lambda leaf: leaf.detach()[start : start + block], tree)

        mine = rows(params), rows(extra)
        for first in range(0, samples, size):
            part = tree_map(lambda x, at=first: x[:, at : at + size], rows(batch))
            if method == "loop":
                yield looped(*mine, part)
            else:
                yield vmapped_or_looped(torch.vmap(take), looped, *mine, part)

    return (chunks(start) for start in range(0, models, block))
