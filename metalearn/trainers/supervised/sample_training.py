"""What trainings by gradients of single samples are made of: one network, its objective, its loop.

Axes: N samples of a batch or a split, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from metalearn.core import per_sample_module
from metalearn.core.samples.checks import BatchNormPolicy
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.models import Dropout
from metalearn.ranks import OneRank, Ranks
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticSource,
    ModelSource,
    batch_dependence,
)
from metalearn.trainers.loop.assembly import assemble
from metalearn.trainers.loop.loop import Loop
from metalearn.trainers.loop.protocols import Evaluator
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.loop.unvalidated import Unvalidated
from metalearn.trainers.supervised.batches import LabelledBatch
from metalearn.trainers.supervised.clipping_record import ClippingRecord
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.metrics import Metrics, with_measures
from metalearn.trainers.supervised.model_evaluation import ModelEvaluator, Monitor
from metalearn.trainers.supervised.per_sample_objective import PerSampleObjective
from metalearn.trainers.supervised.per_sample_source import PerSampleSource
from metalearn.trainers.supervised.predictions import Predict, logits_of, report_of, shared_by
from metalearn.trainers.supervised.pure_model import PureModel
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.supervised.scoring import check_outputs, score_split
from metalearn.types import Split

__all__ = ["SampleTraining", "without_mixing"]


Batches = Callable[[int], LabelledBatch]
"""From a step to its inputs and targets."""


class SampleTraining:
    """One network that is trained by the gradients of its samples.

    Args:
        model: that is trained in place.
        data: samples in three splits.
        batches: from a step to inputs and targets.
        make: makes the objective of the model and the batches.
        loss: what is descended.
        seed: of masks of dropout.
        monitor: what decides which state is best; None reads nothing of the validation split.
        metrics: further numbers of splits.
        device: where the model is.
        vectorize: whether the model is called inside vmap.
        ranks: that share the training; None is one process.
        apart: refuse a model or a loss in which samples of a batch depend on each other.

    Raises:
        SettingError: a model that does not fit the data or the loss; see ``apart``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: SupervisedData,
        batches: Batches,
        make: Callable[[PureModel, Batches], PerSampleObjective],
        loss: SupervisedLoss,
        *,
        seed: int,
        monitor: Monitor | None,
        metrics: Metrics,
        device: torch.device,
        vectorize: bool,
        apart: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks: Ranks = ranks or OneRank()
        self.data, self.metrics, self.device = data, metrics, device
        self.validated, self.stop = monitor is not None, StopSignal()
        self.model = PureModel(model, vectorize=vectorize, device=device, stop=self.stop)
        self.objective = make(self.model, batches)
        self.source = PerSampleSource(self.objective, loss)
        weighted = self.objective.weights is not None
        _check_outputs(self.model, data, loss, weighted=weighted)
        if apart:
            self._check_apart()
        _seed_dropout(model, seed)
        self.evaluator: Evaluator = Unvalidated(1)
        if monitor is not None:
            predict = shared_by(self.ranks, self.model.predict, self.stop)
            self.evaluator = _evaluator(predict, device, data, monitor, loss, metrics)

    def loop(self, limits: LoopSettings, **rest: Any) -> Loop:
        """The loop over it; ``rest`` are optimiser, tracker and folder."""
        seen = []
        if self.validated and not math.isinf(self.objective.max_norm):
            seen.append(ClippingRecord(self.objective, self.data))
        rest |= {"settings": limits, "source": self.source, "device": self.device}
        rest["ranks"] = self.ranks
        rest["callbacks"] = seen
        return assemble(self.model.module, self.objective, self.evaluator, stop=self.stop, **rest)

    def right(self, split: Split) -> torch.Tensor:
        """Which samples of a split the network classes rightly, as it stands: bool ``[N]``."""
        predict = shared_by(self.ranks, self.model.predict, self.stop)
        outputs, labels = logits_of(predict, self.data, split, device=self.device)
        return outputs[0].argmax(-1) == labels

    def test(self, split: Split) -> EnsembleTest | RegressionTest:
        """Scores of the network as it stands; of classes temperature, where it is validated."""
        how: Any = {"members": 1, "device": self.device, "metrics": self.metrics}
        predict = shared_by(self.ranks, self.model.predict, self.stop)
        return score_split(predict, self.data, split, validated=self.validated, **how)

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """The network on samples of a split, in evaluation mode."""
        indices = self.data.splits[data.split][: data.samples]
        batch = self.data.take(indices, device=self.device)
        module = self.model.module
        module.eval()
        for models in self.source.predictive_models(batch):
            yield "network", ModelSource(models, module, data.models_at_once)

    def _check_apart(self) -> None:
        """Refuse a network, or a loss, in which a sample counts otherwise beside others.

        Two samples that are drawn go through it together and alone, in evaluation mode. A loss of
        one's own may be a mean or a sum over samples.

        Raises:
            SettingError: the outputs of one depend on the other, or the loss does.
        """
        both = _drawn(self.data, self.device)
        alone = [tuple(part[i : i + 1] for part in both) for i in range(2)]
        model, loss, params = self.model, self.objective.loss, self.model.params
        model.module.eval()
        try:
            with torch.no_grad():
                whole, ones = model.outputs(params, both[0]), [
                    model.outputs(params, x) for x, _ in alone
                ]  # fmt: skip
                together, each = loss(params, both), [loss(params, one) for one in alone]
        except (RuntimeError, ValueError, IndexError):
            return  # these two do not fit; samples of the data do
        finally:
            model.train()
        if not _alike(whole, torch.cat(ones)):
            name = type(model.module).__name__
            accepted = "outputs are needed that depend on no other sample of a batch"
            raise SettingError("model", name, accepted)
        total = torch.stack(each).sum()
        if not (_alike(together, total / 2) or _alike(together, total)):
            accepted = "a mean of what samples lose by themselves is needed, without pairs of them"
            raise SettingError("loss", "a function of several samples at once", accepted)


def without_mixing(model: nn.Module, policy: BatchNormPolicy | None) -> nn.Module:
    """The module in training mode, or a copy without BatchNorm.

    Raises:
        SettingError: samples of a batch depend on each other.
    """
    if policy is not None:
        model = per_sample_module(model, batch_norm=policy)
    else:
        model.train()
    reason = batch_dependence(model)
    if reason:
        raise SettingError("model", type(model).__name__, f"{reason} (batch_norm=groupnorm)")
    return model


def _check_outputs(
    model: PureModel, data: SupervisedData, loss: SupervisedLoss, *, weighted: bool
) -> None:
    """Run two samples through the module before any training, and one alone."""
    name = type(model.module).__name__
    how: Any = {"members": None, "device": model.device, "weighted": weighted}
    check_outputs(name, model.predict, data, loss, **how)
    x, _ = data.take(data.splits["train"][:1], device=model.device)
    try:
        with torch.no_grad():
            model.outputs(model.params, x)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        accepted = f"a sample alone is what it gets in training ({reason})"
        raise SettingError("model", name, accepted) from error


def _drawn(data: SupervisedData, device: torch.device) -> LabelledBatch:
    """Two samples with nothing of the data in them but shapes and types."""
    draws = torch.Generator().manual_seed(0)
    found = []
    for part in data.take(data.splits["train"][:1], device=device):
        rows = torch.arange(2).view(2, *(1,) * (part.dim() - 1)).expand(2, *part.shape[1:])
        if part.is_floating_point():
            rows = torch.randn(rows.shape, generator=draws)
        found.append(rows.to(part))
    return tuple(found)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether numbers are the same but for rounding, or neither are finite."""
    known, others = bool(one.isfinite().all()), bool(other.isfinite().all())
    if not known or not others:
        return known == others
    size = float(torch.maximum(one.abs(), other.abs()).max())
    return float((one - other).abs().max()) <= 1e-3 * size + 1e-9


def _evaluator(
    predict: Predict,
    device: torch.device,
    data: SupervisedData,
    monitor: Monitor,
    loss: SupervisedLoss,
    metrics: Metrics,
) -> Evaluator:
    """What scores the validation split, and what is measured there beside the scores."""
    report = partial(report_of, predict, data, "validation", members=1, device=device)
    found = ModelEvaluator(report, monitor)
    asked: Any = {"metrics": metrics, "loss": loss, "monitor": monitor}
    return with_measures(found, predict, data, **asked, device=device, alone=True)


def _seed_dropout(module: nn.Module, seed: int) -> None:
    """Give every `Dropout` layer a stream of masks of its own."""
    dropouts = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    for number, layer in enumerate(dropouts):
        layer.key.copy_(torch.tensor(seed) * 65537 + number)
