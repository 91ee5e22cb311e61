"""How curvature is sought.

Axes: K Lanczos iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metalearn.errors import check_whole

__all__ = ["CurvatureSettings"]


@dataclass(frozen=True)
class CurvatureSettings:
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
