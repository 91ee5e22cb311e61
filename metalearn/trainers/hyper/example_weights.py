"""A learnt weight on each training example.

Axes: N examples of the training part, B samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number
from metalearn.data import MislabelledData
from metalearn.signatures import checked
from metalearn.tracking import example_weights_figure
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues
from metalearn.trainers.supervised.network_run import StepBatch
from metalearn.trainers.supervised.run_network import RunNetwork
from metalearn.types import Params

__all__ = ["LearntExampleWeights"]


class LearntExampleWeights(HyperModule):
    """Weights w ``[N]`` in the loss (1/B)·Σ w_i·ℓ_i of a batch.

    w_i = σ(a_i) in (0, 1), or softplus(a_i) above 0, of free numbers a, which are learnt. The
    normaliser is B and not Σ w, so that small weights also make small steps.

    Args:
        setup: the ordinary run, whose weights are 1.
        bound: ``"unit"`` for (0, 1), ``"positive"`` for all above 0.
        initial: of all weights; None is 0.5 in (0, 1), and else 1.

    Raises:
        SettingError: a value out of range.

    Source: Ren et al., "Learning to Reweight Examples for Robust Deep Learning", ICML 2018; Shu et
    al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019, whose
    weights are sigmoids of a network of the loss.
    """

    @checked
    def __init__(
        self,
        setup: RunSetup,
        *,
        bound: Literal["unit", "positive"] = "unit",
        initial: float | None = None,
    ) -> None:
        super().__init__(setup)
        check_mode("bound", bound, ("unit", "positive"))
        self.bound, unit = bound, bound == "unit"
        value = (0.5 if unit else 1.0) if initial is None else initial
        check_number("initial", value, above=0, below=1 if unit else math.inf)
        free = math.log(value / (1 - value)) if unit else value + math.log(-math.expm1(-value))
        self.scores = nn.Parameter(setup.like.new_full((setup.data.size("train"),), free))

    def values(self, raw: Mapping[str, Tensor]) -> RunValues:
        """``weights`` ``[N]``, in the order of ``data.splits["train"]``."""
        squash: Any = torch.sigmoid if self.bound == "unit" else F.softplus
        return RunValues({"weights": squash(raw["scores"])}, {})

    def terms(
        self, network: RunNetwork, params: Params, in_loss: Mapping[str, Tensor], batch: StepBatch
    ) -> Tensor:
        """w_i·ℓ_i."""
        return in_loss["weights"][batch[2]] * self.sample_losses(network, params, batch)

    def plain(self) -> RunValues:
        """Weights of 1."""
        return RunValues({"weights": torch.ones_like(self.scores)}, {})

    def records(self, values: RunValues) -> dict[str, float]:
        """Their mean and deciles; where labels are known to be wrong, what tells these apart."""
        weights = values.in_loss["weights"].cpu().double()
        low, high = torch.quantile(weights, torch.tensor([0.1, 0.9]).double()).tolist()
        found = {"mean": float(weights.mean()), "decile_1": low, "decile_9": high}
        wrong = self._wrong()
        if wrong is not None and bool(wrong.any()) and not bool(wrong.all()):
            found["mean_of_wrong"] = float(weights[wrong].mean())
            found["mean_of_right"] = float(weights[~wrong].mean())
            found["auroc_of_wrong"] = _area(weights[~wrong], weights[wrong])
        return {f"weights/{name}": value for name, value in found.items()}

    def figure(self, values: RunValues, plain: RunValues, title: str) -> Figure:
        """How many examples have which weight."""
        return example_weights_figure(values.in_loss["weights"], wrong=self._wrong(), title=title)

    def _wrong(self) -> Tensor | None:
        data = self.setup.data
        return data.wrong if isinstance(data, MislabelledData) else None


def _area(above: Tensor, below: Tensor) -> float:
    """Share of pairs of which the first is larger, ties counted by half."""
    ordered = below.sort().values
    less = torch.searchsorted(ordered, above, right=False).double()
    equal = torch.searchsorted(ordered, above, right=True).double() - less
    return float((less + equal / 2).mean() / len(below))
