"""A clipping norm that follows a quantile of the norms, and pays for it out of the same noise.

Axes: N examples of a step, B as expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.float64 import widest
from metalearn.errors import check_whole
from metalearn.schema import Kind, mapping, number
from metalearn.signatures import checked

__all__ = ["QuantileNorm"]

_SENSITIVITY = 0.5
"""Of a sum of bits less a half, in one example."""


class QuantileNorm:
    """C of a private training, which follows the γ-quantile of its gradients' norms.

    After each step C ← C·exp(−η·(b̃ − γ)), b̃ = ½ + (Σ_i (1[‖g_i‖ ≤ C] − ½) + σ_b·z)/B the noisy
    share of examples that were not clipped. A step releases the sum of clipped gradients over C and
    that of the bits, of which one example moves the first by 1 and the second by ½. Both together
    cost what one Gaussian sum with noise multiplier σ does where the gradients get
    σ_g = (σ⁻² − (2·σ_b)⁻²)^(−½), a little more than σ: the account stays that of σ.

    The norm that a step found holds from the next one on, so that a step is the same however often
    it is looked at.

    Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive
    Clipping", NeurIPS 2021 (algorithm 1 and theorem 1).

    Args:
        start: C of the first step, above 0 and finite.
        noise_multiplier: σ of both sums together, above 0.
        expected: B, at least 1.
        quantile: γ in (0, 1): the share of gradients that are to be within C.
        rate: η above 0.
        noise: σ_b, of the sum of bits, above σ/2; None takes B/20, or σ where that is more.

    Raises:
        SettingError: a number out of its range.
    """

    @checked
    def __init__(
        self,
        start: float,
        *,
        noise_multiplier: float,
        expected: int,
        quantile: float = 0.5,
        rate: float = 0.2,
        noise: float | None = None,
    ) -> None:
        check_number("start", start, above=0, below=math.inf)
        check_number("noise_multiplier", noise_multiplier, above=0)
        check_number("quantile", quantile, above=0, below=1)
        check_number("rate", rate, above=0, below=math.inf)
        check_whole("expected", expected, 1)
        sigma = float(noise_multiplier)
        if noise is None:
            noise = max(expected / 20, sigma)
        least = _SENSITIVITY * sigma
        accepted = f"a number above σ/2 = {least:.4g} is needed, so that gradients get some"
        check_number("noise", noise, above=least, accepted=accepted)
        self.norm, self.quantile, self.rate = float(start), float(quantile), float(rate)
        self.noise, self.expected = float(noise), expected
        self.gradient_noise = (sigma**-2 - (self.noise / _SENSITIVITY) ** -2) ** -0.5
        self._next = self.norm

    def bits(self, norms: Tensor) -> Tensor:
        """Σ_i (1[‖g_i‖ ≤ C] − ½) of the examples' norms ``[N]``, a scalar.

        It is in float64 where the device has that; halves are exact in float32 up to 2^23.
        """
        within = widest(norms <= self.norm)
        return (within - _SENSITIVITY).sum()

    def follow(self, noisy: float) -> None:
        """Find the norm of the next step from the noisy sum of bits of this one."""
        share = noisy / self.expected + _SENSITIVITY
        moved = self.rate * (share - self.quantile)
        self._next = self.norm * math.exp(-min(max(moved, -1.0), 1.0))

    def advance(self) -> None:
        """Begin the next step."""
        self.norm = self._next

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the norm of the next step."""
        return {"clipping_norm": self._next}

    def state_kinds(self) -> list[Kind]:
        """The same."""
        return [mapping({"clipping_norm": number(0)})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.norm = self._next = float(state["clipping_norm"])
