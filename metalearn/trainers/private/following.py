"""The setting of a clipping norm that follows a quantile of norms.

Axes: B units of a step as expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from metalearn.core.checks import check_number
from metalearn.core.samples.clipping_groups import Clipping, ParameterGroups
from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.privacy import AdaptiveGaussian, BandedGaussian, QuantileNorm, SampledGaussian

__all__ = ["ClipQuantile", "following_norm", "with_norm"]

ClipQuantile: TypeAlias = float | Mapping[str, float] | None
"""γ in (0, 1), or that with ``rate`` and ``noise`` as arguments of `QuantileNorm` by name."""

_NAMES = "quantile", "rate", "noise"


def following_norm(
    given: ClipQuantile,
    max_norm: float,
    clipping: Clipping,
    groups: ParameterGroups,
    mechanism: SampledGaussian | AdaptiveGaussian | BandedGaussian,
) -> QuantileNorm | None:
    """The norm that the setting ``clip_quantile`` asks for; None where C stays.

    Raises:
        SettingError: a value out of its range; gradients that are clipped in another way.
    """
    if given is None:
        return None
    sigma = mechanism.noise_multiplier
    found: dict[str, Any] = {"quantile": given}
    if isinstance(given, Mapping):
        for name in given:
            check_known("clip_quantile", name, _NAMES)
        found = {name: value for name, value in given.items() if value is not None}
    accepted = "a number in (0, 1) is needed: the share of gradients that are to be within C"
    shown = "clip_quantile.{}" if isinstance(given, Mapping) else "clip_quantile"
    check_number(shown.format("quantile"), found.get("quantile"), above=0, below=1,
                 accepted=accepted)  # fmt: skip
    if "rate" in found:
        check_number("clip_quantile.rate", found["rate"], above=0, below=math.inf)
    if "noise" in found:
        accepted = f"a number above σ/2 = {sigma / 2:.4g} is needed, so that gradients get some"
        limits: Any = {"above": sigma / 2, "below": math.inf, "accepted": accepted}
        check_number("clip_quantile.noise", found["noise"], **limits)
    if isinstance(mechanism, BandedGaussian):
        accepted = "1 is needed where clip_quantile is given"
        raise SettingError("noise_bands", mechanism.bands, accepted)
    for name, value, plain in (("clipping", clipping, "flat"), ("clip_groups", groups, "all")):
        if value != plain:
            raise SettingError(name, value, f"{plain} is needed where clip_quantile is given")
    return QuantileNorm(max_norm, noise_multiplier=sigma, expected=mechanism.batch_size, **found)


def with_norm(results: Mapping[str, Any], norm: QuantileNorm) -> dict[str, Any]:
    """Results of a private training, with the norm that it has come to and how σ was shared."""
    noise = {"gradients": norm.gradient_noise, "count": norm.noise}
    own = {"max_norm": norm.norm, "noise_multipliers": noise}
    return {**results, "privacy": {**results["privacy"], **own}}
