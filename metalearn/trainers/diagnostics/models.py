"""Losses, Hessian and GGN of models, and the vmap over them.

Axes: G models (members, tasks), N samples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import ggn_operator, hessian_operator
from metalearn.core.curvature.gaussian import gaussian_nll
from metalearn.core.tree import tree_map
from metalearn.trainers.diagnostics.protocol import PredictiveModels
from metalearn.types import Batch, LossFn, Params

__all__ = ["CURVATURES", "hessian_of", "map_models", "mean_loss"]


def map_models(
    function: Callable[..., Any],
    models: Sequence[PredictiveModels],
    models_at_once: int | None = None,
) -> Any:
    """``function(set, params, extra, batch)`` of every model, leaves ``[G, ...]`` over all sets.

    One vmap for each set of models, over all of them or ``models_at_once``; random draws are the
    same for each model.
    """
    found = []
    for one in models:
        mapped = torch.vmap(
            lambda *model, one=one: function(one, *model),
            randomness="same",
            chunk_size=models_at_once,
        )
        found.append(mapped(one.params, one.extra, one.batch))
    return tree_map(lambda *parts: torch.cat(parts).detach(), *found)


def mean_loss(models: PredictiveModels, extra: Any) -> LossFn:
    """Mean loss of a batch under one model, which has ``extra`` beside its parameters."""
    outputs, measure = models.outputs_fn(extra), _criterion(models)
    return lambda params, batch: measure(outputs(params, batch[0]), batch[1])


def hessian_of(models: PredictiveModels, params: Params, extra: Any, batch: Batch) -> Any:
    """Products with the Hessian of one model's mean loss."""
    return hessian_operator(mean_loss(models, extra), params, [batch])


def ggn_of(models: PredictiveModels, params: Params, extra: Any, batch: Batch) -> Any:
    """Products with its generalised Gauss–Newton matrix."""
    return ggn_operator(models.outputs_fn(extra), _criterion(models), params, [batch])


CURVATURES: dict[str, Callable[..., Any]] = {"hessian": hessian_of, "ggn": ggn_of}


def _criterion(models: PredictiveModels) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean −log p: cross-entropy, of normal distributions, or mean squared errors over 2σ².

    Without a likelihood it is the mean loss that the models come with.
    """
    if models.criterion is not None:
        return models.criterion
    if models.likelihood == "categorical":
        return F.cross_entropy
    if models.likelihood == "heteroscedastic_gaussian":
        return gaussian_nll
    return lambda f, y: (f - y).square().flatten(1).sum(1).mean() / (2 * models.variance)
