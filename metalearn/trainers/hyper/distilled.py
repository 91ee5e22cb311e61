"""A few learnt inputs that a network is trained on in place of the training part.

Axes: n distilled inputs, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.core.autodiff.products import check_mode
from metalearn.core.random_tensors import normal
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream
from metalearn.signatures import checked
from metalearn.tracking import pictures_figure
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues
from metalearn.trainers.supervised.network_run import StepBatch
from metalearn.trainers.supervised.run_network import RunNetwork
from metalearn.types import Params

__all__ = ["DistilledExamples"]

_SURE = 4.0  # of the score of an input's own class, where labels are learnt: 86 % of ten


class DistilledExamples(HyperModule):
    """n = ``per_class``·C inputs, all of which every step of a run is taken on.

    Inputs are free real numbers; labels are the classes or, where they are learnt, probabilities
    softmax(s) ``[n, C]``; the learning rate, where it is learnt, is exp(a), one for all steps.

    Args:
        setup: the ordinary run, whose rate and optimiser it keeps.
        per_class: how many inputs of each class.
        labels: whether they are learnt.
        rate: whether the learning rate is learnt.
        start: inputs to begin with: ``"examples"`` of the training part, drawn by the seed, or
            standard normal ``"noise"``.

    Raises:
        SettingError: real targets or a loss of one's own, a class with fewer examples, a learnt
            rate beside a schedule.

    Source: Wang et al., "Dataset Distillation", 2018.
    """

    sees_examples = False

    @checked
    def __init__(
        self,
        setup: RunSetup,
        *,
        per_class: int = 1,
        labels: bool = False,
        rate: bool = True,
        start: Literal["examples", "noise"] = "examples",
    ) -> None:
        super().__init__(setup)
        check_whole("per_class", per_class, 1)
        check_mode("start", start, ("examples", "noise"))
        if setup.loss.name != "cross_entropy":
            accepted = "cross_entropy of classes is needed where inputs are distilled"
            raise SettingError("loss", setup.loss.name, accepted)
        if rate and bool((setup.rates != setup.rates[0]).any()):
            accepted = "false is needed beside a schedule, or inner.schedule='constant'"
            raise SettingError("rate", rate, accepted)
        classes = torch.arange(setup.data.outputs, device=setup.like.device)
        self.classes = classes.repeat_interleave(per_class)
        rows = _rows(setup, per_class)
        inputs = setup.data.take(rows, device=setup.like.device)[0]
        if not inputs.is_floating_point():
            accepted = "inputs of real numbers are needed where they are learnt, not tokens"
            raise SettingError("data", str(inputs.dtype), accepted)
        inputs = inputs.to(setup.like)
        if start == "noise":
            drawn = AddressedStream(setup.seed, "distilled", setup.data.outputs)
            seed = int(drawn.with_replacement(2**53, 1)[0])
            inputs = normal(inputs.shape, inputs, torch.Generator().manual_seed(seed))
        self.inputs = nn.Parameter(inputs)
        if labels:
            self.label_scores = nn.Parameter(_SURE * self._one_hot())
        if rate:
            self.log_rate = nn.Parameter(setup.rates[0].log())

    def values(self, raw: Mapping[str, Tensor]) -> RunValues:
        """``inputs`` and ``targets``, probabilities ``[n, C]``; ``lr`` where it is learnt."""
        learnt = "label_scores" in raw
        targets = raw["label_scores"].softmax(-1) if learnt else self._one_hot()
        in_loss = {"inputs": raw["inputs"], "targets": targets}
        return RunValues(in_loss, {"lr": raw["log_rate"].exp()} if "log_rate" in raw else {})

    def examples(self, in_loss: Mapping[str, Tensor], batch: StepBatch) -> StepBatch:
        """The inputs and their labels."""
        return in_loss["inputs"], in_loss["targets"], self.classes, batch[3]

    def terms(
        self, network: RunNetwork, params: Params, in_loss: Mapping[str, Tensor], batch: StepBatch
    ) -> Tensor:
        """Cross-entropies of the inputs with their labels."""
        x, y, _, step = batch
        return -(y * network.trained(params, x, step).log_softmax(-1)).sum(-1)

    def records(self, values: RunValues) -> dict[str, float]:
        """The learnt rate; the range of the inputs."""
        inputs = values.in_loss["inputs"]
        found = {"inputs/least": float(inputs.min()), "inputs/largest": float(inputs.max())}
        if "lr" in values.in_optimizer:
            found["rate/all"] = float(values.in_optimizer["lr"])
        return found

    def figure(self, values: RunValues, plain: RunValues, title: str) -> Figure | None:
        """The pictures, under the class that their label gives most to."""
        if len(self.setup.data.input_shape) != 3:
            return None
        names = self.setup.data.class_names  # type: ignore[union-attr]
        labels = [names[c] for c in values.in_loss["targets"].argmax(-1).tolist()]
        return pictures_figure(values.in_loss["inputs"], labels, title=title)

    def _one_hot(self) -> Tensor:
        """``[n, C]``."""
        own = self.classes[:, None] == torch.arange(
            self.setup.data.outputs, device=self.classes.device
        )
        return own.to(self.setup.like.dtype)


def _rows(setup: RunSetup, per_class: int) -> Tensor:
    """As many training samples of each class, drawn by the seed."""
    samples = setup.data.splits["train"]
    targets, found = setup.data.targets[samples], []
    for label in range(setup.data.outputs):
        own = samples[targets == label]
        if len(own) < per_class:
            accepted = f"at most {len(own)} is accepted, as class {label} has so many examples"
            raise SettingError("per_class", per_class, accepted)
        stream = AddressedStream(setup.seed, "distilled", label)
        found.append(own[torch.tensor(stream.without_replacement(len(own), per_class))])
    return torch.cat(found)
