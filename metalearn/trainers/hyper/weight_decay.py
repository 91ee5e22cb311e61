"""A learnt strength of the penalty on a network's weights.

Axes: G groups of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number
from metalearn.signatures import checked
from metalearn.tracking import layers_figure
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues
from metalearn.types import Params

__all__ = ["LearntWeightDecay"]


class LearntWeightDecay(HyperModule):
    """Strengths λ ``[G]`` of the penalty Σ_g ½·λ_g·‖θ_g‖² beside the mean loss, λ_g = exp(a_g).

    Args:
        setup: the ordinary run.
        per: what has a strength of its own: each ``"layer"``, weights and biases together, or the
            ``"network"`` as a whole.
        initial: of all strengths, above 0.

    Raises:
        SettingError: a value out of range.

    Source: Lorraine, Vicol and Duvenaud, "Optimizing Millions of Hyperparameters by Implicit
    Differentiation", AISTATS 2020.
    """

    @checked
    def __init__(
        self,
        setup: RunSetup,
        *,
        per: Literal["layer", "network"] = "layer",
        initial: float = 1e-3,
    ) -> None:
        super().__init__(setup)
        check_mode("per", per, ("layer", "network"))
        check_number("initial", initial, above=0)
        owner = {n: n.rpartition(".")[0] if per == "layer" else "" for n in setup.params}
        self.groups = list(dict.fromkeys(owner.values()))
        self._group_of = {name: self.groups.index(group) for name, group in owner.items()}
        strengths = setup.like.new_full((len(self.groups),), math.log(initial))
        self.log_strengths = nn.Parameter(strengths)

    def values(self, raw: Mapping[str, Tensor]) -> RunValues:
        """``strengths`` ``[G]``."""
        return RunValues({"strengths": raw["log_strengths"].exp()}, {})

    def penalty(self, params: Params, in_loss: Mapping[str, Tensor]) -> Tensor:
        """Σ_g ½·λ_g·‖θ_g‖²."""
        strengths = in_loss["strengths"]
        squares = [strengths[self._group_of[n]] * v.square().sum() for n, v in params.items()]
        return torch.stack(squares).sum() / 2

    def records(self, values: RunValues) -> dict[str, float]:
        """Each strength by the name of its layer."""
        strengths = values.in_loss["strengths"].tolist()
        return {f"decay/{name}": value for name, value in zip(self._names(), strengths)}

    def figure(self, values: RunValues, plain: RunValues, title: str) -> Figure:
        """A bar for each strength."""
        strengths = values.in_loss["strengths"]
        return layers_figure(self._names(), strengths, label="strength of the penalty", title=title)

    def _names(self) -> list[str]:
        return [name or "network" for name in self.groups]
