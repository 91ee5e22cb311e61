"""Noise of a step that takes back part of the noise of earlier steps.

Axes: b bands, P parameters, all elements of all leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.tree import check_floating, flatten, unflatten
from metalearn.errors import SettingError, check_whole
from metalearn.privacy.noise import noisy_leaves, standard_normal
from metalearn.privacy.strategies import checked_bands
from metalearn.signatures import checked

__all__ = ["CorrelatedNoise"]


class CorrelatedNoise:
    """Adds the rows of S⁻¹z to sums, step by step, S banded and Toeplitz.

    y_t = (z_t − c₁·y_{t−1} − … − c_{b−1}·y_{t−b+1})/c₀ for z_t of independent standard normal
    values, so that S·y = z. The b − 1 last rows are kept, in float64 and in memory alone: whoever
    has them can take the noise of later steps off, so that they are written nowhere.

    **A step that does not follow the last one begins a new series**, as the first one does: earlier
    noise is forgotten. `PrivacyAccount` counts it so, see `BandedGaussian`. Where noise is drawn by
    seeded generators, which protect nothing, it is made anew from step 0 on instead, and a run that
    was interrupted has the noise of one that was not.

    Kairouz et al., "Practical and Private (Deep) Learning without Sampling or Shuffling", ICML
    2021; Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A Unified Approach to
    Private Training", NeurIPS 2023.

    Args:
        strategy: c, ``[b]``, of norm 1, see `banded_strategy`.

    Raises:
        SettingError: it is none, or its norm is above 1, for which the noise would be too little.
    """

    @checked
    def __init__(self, strategy: Tensor) -> None:
        c = checked_bands(strategy)
        if c.norm() > 1 + 1e-9:
            accepted = "a norm of at most 1 is needed, or the noise is too little"
            raise SettingError("strategy", f"of norm {float(c.norm()):.6g}", accepted)
        self.strategy = c.clone()
        self._past: Tensor | None = None  # [b - 1, P], the row of step t in t mod (b - 1)
        self._taken, self._next = 0, 0  # steps of the series; the step that goes on with it

    @checked
    def add(
        self,
        sums: Any,
        std: float,
        *,
        step: int,
        generator: Callable[[int], torch.Generator] | None = None,
    ) -> Any:
        """A tree of sums plus y_t times ``std``, added in float64 and rounded once.

        See `add_gaussian_noise`, which this is for one band.

        Args:
            sums: a tree of floating-point tensors, P elements in all; left as it is.
            std: σ·C, at least 0; it may differ between steps, while σ does not.
            step: t.
            generator: of the bits of a step, for experiments; None takes the secure one.

        Returns:
            The tree with noise, of the shapes, types and devices of ``sums``.

        Raises:
            SettingError: ``sums`` has other leaves, or another size than in the step before;
                a number out of range.
        """
        check_floating(sums, "sums")
        check_number("std", std, least=0)
        check_whole("step", step, 0)
        values, shape = flatten(sums)
        if step != self._next or not self._taken:
            self._begin(step, values, generator)
        row = self._row(values, None if generator is None else generator(step))
        self._next = step + 1
        return unflatten(noisy_leaves(values, row * float(std)), shape)

    def _begin(
        self,
        step: int,
        values: list[Tensor],
        generator: Callable[[int], torch.Generator] | None,
    ) -> None:
        """Forget earlier noise, or make it anew."""
        size = sum(value.numel() for value in values)
        self._past = torch.zeros(len(self.strategy) - 1, size, dtype=torch.float64)
        self._taken = 0
        if generator is not None and len(self._past):
            for earlier in range(step):
                self._row(values, generator(earlier))

    def _row(self, values: list[Tensor], generator: torch.Generator | None) -> Tensor:
        """The next row of S⁻¹z, ``[P]``."""
        assert self._past is not None
        drawn = standard_normal(values, generator)
        many = len(self._past)
        if many:
            if len(drawn) != self._past.shape[1]:
                accepted = f"{self._past.shape[1]} elements are needed, as in the step before"
                raise SettingError("sums", f"{len(drawn)} elements", accepted)
            ago = (self._taken - 1 - torch.arange(many)) % many
            drawn -= self.strategy[1 + ago] @ self._past
        drawn /= self.strategy[0]
        if many:
            self._past[self._taken % many] = drawn
        self._taken += 1
        return drawn
