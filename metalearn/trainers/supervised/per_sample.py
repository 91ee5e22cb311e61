"""Supervised training in which a step is made of the gradients of single samples.

Axes: N samples of a batch or a split, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from metalearn.core import per_sample_module
from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize
from metalearn.core.samples.checks import BatchNormPolicy
from metalearn.core.samples.gradients import SampleMethod
from metalearn.data import Augmentation, MemberBatches
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.models import Dropout
from metalearn.random_streams import check_split
from metalearn.signatures import checked
from metalearn.tracking import Tracker
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticSource,
    ModelSource,
    batch_dependence,
)
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.protocols import Evaluator
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.supervised.batches import LabelledBatch, TrainingBatches
from metalearn.trainers.supervised.ensemble_settings import check_monitor
from metalearn.trainers.supervised.losses import LossSetting, SupervisedLoss, chosen_loss
from metalearn.trainers.supervised.member_weights import MemberWeights, example_weights
from metalearn.trainers.supervised.metrics import Metrics, check_metrics, with_measures
from metalearn.trainers.supervised.model_evaluation import ModelEvaluator, Monitor
from metalearn.trainers.supervised.network_run import NetworkRun, ordinary_run
from metalearn.trainers.supervised.per_sample_objective import PerSampleObjective
from metalearn.trainers.supervised.per_sample_source import PerSampleSource
from metalearn.trainers.supervised.plans import SamplePlan
from metalearn.trainers.supervised.predictions import report_of
from metalearn.trainers.supervised.pure_model import PureModel
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.supervised.scoring import check_outputs, score_split
from metalearn.trainers.trainer import Trainer
from metalearn.types import Params, Split

__all__ = ["PerSampleTrainer"]


class PerSampleTrainer(Trainer):
    """Trains one module on labelled data, each sample's gradient clipped before they are averaged.

    The gradient of a step is (1/N)·(Σ_i g_i·min(1, C/‖g_i‖) + σ·C·z), C the ``max_norm``, σ the
    ``noise_multiplier``, z standard normal: with σ > 0 the update of DP-SGD (Abadi et al., "Deep
    Learning with Differential Privacy", CCS 2016). **No privacy is accounted for**: batches come
    from shuffled epochs, not from Poisson sampling, no ε is computed, noise is drawn from a seeded
    generator, and validation reads private data. With C = ∞ it is ordinary training.

    Args:
        model: outputs ``[N, C]``; trained in place, or a copy of it where ``batch_norm`` is set
            (see ``trainer.module``).
        data: samples in three splits, with classes or real targets.
        seed: of the order of samples, augmentation, dropout masks and noise.
        steps: in all.
        batch_size: N.
        max_norm: C, above 0; infinity clips nothing.
        noise_multiplier: σ, at least 0; above 0 it needs a finite C.
        batch_norm: what to make of BatchNorm: ``"groupnorm"``, or ``"eval"`` (running statistics,
            never updated); None refuses it.
        chunk_size: samples at a time; None takes all, ``"auto"`` as many as memory has room for,
            decided once (with ``deterministic``: all).
        method: of per-sample gradients, see `metalearn.core.per_sample_gradients`; ``"loop"`` takes
            modules that vmap cannot take.
        max_shift, flip, rotate: augmentation of pictures; see `metalearn.data.Augmentation`.
        member_weights: w ``[N]`` on the training examples, whose loss is (1/N)·Σ w_i·ℓ_i on a batch
            of N: clipped are the gradients of w_i·ℓ_i. See `EnsembleTrainer`.
        loss: what is descended: ``"cross_entropy"`` of classes; of `RegressionData`
            ``"gaussian_nll"``, outputs ``[B, 2·D]`` are means and logarithms s of variances
            e^s + 10⁻⁶, or ``"mse"``, outputs ``[B, D]`` are means, scored with variances of 1; or a
            function from outputs and targets to losses ``[B]``, or to their mean, by which the
            best is chosen too where ``monitor`` is the loss. None is the first that fits the data.
        metrics: further numbers of the validation and test splits by name, functions from outputs
            ``[1, N, C]`` and targets to a number.
        monitor: what decides which state is best, on the validation split.
        diagnostics: what to show of the gradients; see `metalearn.trainers.diagnostics`.
        optimizer: makes the optimiser from the parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go.
        folder: of the run, for checkpoints.
        device: where to train.
        settings: the rest of `LoopSettings` by name; ``clip`` is that of the mean gradient.

    Raises:
        SettingError: a setting out of range, a model whose samples depend on each other or that
            does not fit the data.
    """

    makes_module: ClassVar[tuple[str, ...]] = ("batch_norm", "loss")

    @checked
    def __init__(
        self,
        model: nn.Module,
        data: SupervisedData,
        *,
        seed: int = 0,
        steps: int = 1000,
        batch_size: int = 64,
        max_norm: float = 1.0,
        noise_multiplier: float = 0.0,
        batch_norm: BatchNormPolicy | None = None,
        chunk_size: ChunkSize = None,
        method: SampleMethod = "layers",
        max_shift: int = 0,
        flip: bool = False,
        rotate: float = 0.0,
        member_weights: MemberWeights = None,
        loss: LossSetting = None,
        metrics: Metrics | None = None,
        monitor: Monitor = "loss",
        diagnostics: Sequence[str] = ("gradient_norms", "gradient_variance", "noise_scale"),
        optimizer: OptimizerFactory | None = None,
        tracker: Tracker | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        **settings: Annotated[Any, LoopSettings],
    ) -> None:
        _check(max_norm, noise_multiplier, chunk_size, seed)
        check_monitor(monitor, data)
        chosen, self.metrics = chosen_loss(loss, data), check_metrics(metrics)
        check_mode("method", method, get_args(SampleMethod))
        model = _without_mixing(model, batch_norm)
        limits = LoopSettings(steps=steps, diagnostics=diagnostics, **settings)
        where = place(model, device)
        self.data, self.seed, stop = data, seed, StopSignal()
        pure = PureModel(model, vectorize=method != "loop", device=where, stop=stop)
        order = MemberBatches(data.splits["train"], batch_size=batch_size, seeds=[seed])
        shown = Augmentation(max_shift=max_shift, flip=flip, rotate=rotate)
        weights = example_weights(member_weights, 1, data, where)
        self._batches = TrainingBatches(data, order, shown, [seed], where, weights)
        self.objective = PerSampleObjective(
            pure,
            self._batches,
            expected=batch_size,
            max_norm=float(max_norm),
            noise_multiplier=float(noise_multiplier),
            seed=seed,
            chunk_size=chunk_size,
            method=method,
            deterministic=limits.deterministic,
            criterion=chosen.weighted_mean,
            weights=weights,
        )
        self.source = PerSampleSource(self.objective, chosen)
        _check_outputs(pure, data, chosen, weighted=weights is not None)
        _seed_dropout(model, seed)
        rest: Any = {"tracker": tracker, "folder": folder, "device": where, "stop": stop}
        rest |= {"settings": limits, "optimizer": optimizer, "source": self.source}
        evaluator = _evaluator(pure, data, monitor, chosen, self.metrics)
        super().__init__(assemble(model, self.objective, evaluator, **rest))

    def loss(self, params: Params, batch: LabelledBatch) -> Tensor:
        """Mean loss of a batch ``(inputs, targets)`` at given parameters, a scalar."""
        return self.objective.loss(params, batch)

    def network_run(self, member: int = 0) -> NetworkRun:
        """What the network descends at every step, where it is an ordinary one.

        Raises:
            SettingError: gradients of samples that are clipped or noisy, another member than 0.
        """
        check_whole("member", member, 0, 0)
        objective = self.objective
        steps = {"max_norm": objective.max_norm, "noise_multiplier": objective.noise_multiplier}
        return ordinary_run(self.module, self._batches, self.source.loss, steps)

    @checked
    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs ``[1, N, C]`` in evaluation mode."""
        return self.objective.model.predict(inputs)

    @checked
    def test(self, *, split: Split = "test") -> EnsembleTest | RegressionTest:
        """Scores on a split as the module stands (of one member), and of classes temperature."""
        check_split(split)
        data, device = self.data, self.device
        return score_split(
            self.predict, data, split, members=1, device=device, metrics=self.metrics
        )

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
    ) -> dict[str, EnsembleTest | RegressionTest]:
        """See `Trainer.reports`: one `test`, under the name of the split."""
        return {split: self.test(split=split)}

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """The module on samples of a split, in evaluation mode."""
        indices = self.data.splits[data.split][: data.samples]
        batch = self.data.take(indices, device=self.device)
        self.module.eval()
        for models in self.source.predictive_models(batch):
            yield "network", ModelSource(models, self.module, data.models_at_once)

    @property
    def params(self) -> Params:
        """Parameters that are trained, by name; they share storage with the module."""
        return self.objective.model.params

    @property
    def plan(self) -> SamplePlan | None:
        """How gradients are taken; None before that is decided."""
        return self.objective.plan


def _without_mixing(model: nn.Module, policy: BatchNormPolicy | None) -> nn.Module:
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


def _evaluator(
    model: PureModel,
    data: SupervisedData,
    monitor: Monitor,
    loss: SupervisedLoss,
    metrics: Metrics,
) -> Evaluator:
    """What scores the validation split, and what is measured there beside the scores."""
    predict, device = model.predict, model.device
    report = partial(report_of, predict, data, "validation", members=1, device=device)
    found = ModelEvaluator(report, monitor)
    asked: Any = {"metrics": metrics, "loss": loss, "monitor": monitor}
    return with_measures(found, predict, data, **asked, device=device, alone=True)


def _seed_dropout(module: nn.Module, seed: int) -> None:
    """Give every `Dropout` layer a stream of masks of its own."""
    dropouts = [layer for layer in module.modules() if isinstance(layer, Dropout)]
    for number, layer in enumerate(dropouts):
        layer.key.copy_(torch.tensor(seed) * 65537 + number)


def _check(max_norm: float, noise: float, chunk_size: ChunkSize, seed: int) -> None:
    check_whole("seed", seed, 0, 2**63 - 1)
    accepted = "a number above 0 is needed, or infinity"
    check_number("max_norm", max_norm, above=0, infinite=True, accepted=accepted)
    check_number("noise_multiplier", noise, least=0)
    if noise and math.isinf(max_norm):
        raise SettingError("noise_multiplier", noise, "noise needs a finite max_norm")
    if chunk_size is not None and chunk_size != "auto":
        check_whole("chunk_size", chunk_size, 1)
