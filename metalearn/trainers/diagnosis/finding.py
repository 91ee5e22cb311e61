"""What is asked of trained models, and the form of the answer.

Axes: G models (members, tasks), N samples of each, K Lanczos iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import tree_map
from metalearn.errors import check_whole
from metalearn.trainers.diagnostics import Predictive
from metalearn.types import LossFn

__all__ = ["Curvature", "Finding", "criterion", "each", "loss_of"]


@dataclass(frozen=True)
class Curvature:
    """How eigenvalues and traces are sought.

    Attributes:
        eigenvalues: how many of the largest.
        iterations: K of Lanczos.
        probes: random directions of a spectral density.
        products: with the matrix, for a trace.
        models_at_once: of an outer vmap; None takes all.
        seed: of random directions.

    Raises:
        SettingError: a number out of range.
    """

    eigenvalues: int = 5
    iterations: int = 30
    probes: int = 2
    products: int = 30
    models_at_once: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("eigenvalues", self.eigenvalues, 1)
        check_whole("iterations", self.iterations, max(2, self.eigenvalues))
        check_whole("probes", self.probes, 1)
        check_whole("products", self.products, 4)
        check_whole("seed", self.seed, 0, 2**63 - 1)
        if self.models_at_once is not None:
            check_whole("models_at_once", self.models_at_once, 1)

    def generator(self) -> torch.Generator:
        """A fresh one: every quantity has the same draws whatever else is asked for."""
        return torch.Generator().manual_seed(self.seed)


@dataclass
class Finding:
    """One quantity.

    Attributes:
        values: number by name, each ``[G]`` or one number.
        layers: name to a number for each layer.
        matrix: cosines, if any.
        density: λ ``[S]`` and density ``[S]``, if any.
        norms: of all units, if any.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    matrix: Tensor | None = None
    density: tuple[Tensor, Tensor] | None = None
    norms: Tensor | None = None


def each(function: Callable[..., Any], model: Predictive, curvature: Curvature) -> Any:
    """``function(params, extra, batch)`` of every model, in one vmap; the same draws for each."""
    mapped = torch.vmap(function, randomness="same", chunk_size=curvature.models_at_once)
    return tree_map(Tensor.detach, mapped(model.params, model.extra, model.batch))


def criterion(model: Predictive) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean −log p: cross-entropy, or the mean of squared errors over 2σ²."""
    if model.likelihood == "categorical":
        return F.cross_entropy
    return lambda f, y: (f - y).square().flatten(1).sum(1).mean() / (2 * model.variance)


def loss_of(model: Predictive, extra: Any) -> LossFn:
    """Mean −log p of a batch under one model, which has ``extra`` beside its parameters."""
    outputs, measure = model.outputs_fn(extra), criterion(model)
    return lambda params, batch: measure(outputs(params, batch[0]), batch[1])
