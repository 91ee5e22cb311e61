"""Supervised training in which a step is made of the gradients of single samples.

Axes: N samples of a batch or a split, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from torch import nn
from typing_extensions import Unpack

from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize
from metalearn.core.samples.checks import BatchNormPolicy
from metalearn.core.samples.clipping_groups import Clipping, ParameterGroups
from metalearn.core.samples.gradients import SampleMethod
from metalearn.data import Augmentation, MemberBatches
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.ranks import Ranks
from metalearn.signatures import checked
from metalearn.tracking import TrackerChoice
from metalearn.trainers.loop.assembly import place
from metalearn.trainers.loop.options import UnseenLoopOptions
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.supervised import sample_methods as methods
from metalearn.trainers.supervised.batches import TrainingBatches
from metalearn.trainers.supervised.ensemble_settings import check_monitor
from metalearn.trainers.supervised.losses import LossSetting, chosen_loss
from metalearn.trainers.supervised.member_weights import MemberWeights, example_weights
from metalearn.trainers.supervised.metrics import Metrics, check_metrics
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.network_run import NetworkRun, ordinary_run
from metalearn.trainers.supervised.per_sample_objective import PerSampleObjective
from metalearn.trainers.supervised.sample_training import SampleTraining, without_mixing
from metalearn.trainers.trainer import Trainer

__all__ = ["PerSampleTrainer"]


class PerSampleTrainer(Trainer):
    """Trains one module on labelled data, each sample's gradient clipped before they are averaged.

    The gradient of a step is (1/N)·(Σ_i g_i·min(1, C/‖g_i‖) + σ·C·z), C the ``max_norm``, σ the
    ``noise_multiplier``, z standard normal: with σ > 0 the update of DP-SGD (Abadi et al., "Deep
    Learning with Differential Privacy", CCS 2016). **No privacy is accounted for**, which
    `PrivateTrainer` does: batches come from shuffled epochs, no ε is computed, noise is drawn from
    a seeded generator, and validation reads private data. With C = ∞ it is ordinary training.

    Args:
        model: outputs ``[N, C]``; trained in place, or a copy of it where ``batch_norm`` is set
            (see ``trainer.module``).
        data: samples in three splits, with classes or real targets.
        seed: of the order of samples, augmentation, dropout masks and noise.
        steps: in all.
        batch_size: N.
        max_norm: C, above 0; infinity clips nothing.
        clipping: ``"flat"``, or ``"automatic"``, in which all samples count with nearly the same
            norm; see `metalearn.core.clipped_gradient`.
        clip_groups: of parameters that are clipped by themselves: ``"all"``, ``"layers"``, or names
            with patterns; see there.
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
        tracker: where numbers and figures go; names, such as ``"csv"``, are those of `RunTracker`
            and need ``folder``.
        folder: of the run, for checkpoints.
        device: where to train.
        ranks: processes that share the training, each with some of the samples of a batch; None is
            one process. See `metalearn.ranks.joined`.
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
        clipping: Clipping = "flat",
        clip_groups: ParameterGroups = "all",
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
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        **settings: Unpack[UnseenLoopOptions],
    ) -> None:
        _check(max_norm, noise_multiplier, chunk_size, seed)
        check_monitor(monitor, data)
        chosen = chosen_loss(loss, data)
        check_mode("method", method, get_args(SampleMethod))
        model = without_mixing(model, batch_norm)
        limits = LoopSettings(steps=steps, diagnostics=diagnostics, **settings)
        where = place(model, device)
        weights = example_weights(member_weights, 1, data, where)
        order = MemberBatches(data.splits["train"], batch_size=batch_size, seeds=[seed])
        shown = Augmentation(max_shift=max_shift, flip=flip, rotate=rotate)
        self._batches = TrainingBatches(data, order, shown, [seed], where, weights)
        objective = partial(
            PerSampleObjective,
            expected=batch_size, max_norm=float(max_norm), noise_multiplier=float(noise_multiplier),
            seed=seed, chunk_size=chunk_size, method=method, clipping=clipping, groups=clip_groups,
            deterministic=limits.deterministic, criterion=chosen.weighted_mean, weights=weights,
        )  # fmt: skip
        self.training = SampleTraining(
            model, data, self._batches, objective, chosen, seed=seed, monitor=monitor,
            metrics=check_metrics(metrics), device=where, vectorize=method != "loop",
            ranks=ranks,
        )  # fmt: skip
        self.data, self.seed, self.metrics = data, seed, self.training.metrics
        self.objective, self.source = self.training.objective, self.training.source
        rest: Any = {"optimizer": optimizer, "tracker": tracker, "folder": folder}
        super().__init__(self.training.loop(limits, **rest))

    loss = methods.loss
    predict = methods.predict
    test = methods.score
    reports = methods.reports
    diagnosis_sources = methods.diagnosis_sources
    params = methods.params
    plan = methods.plan

    def network_run(self, member: int = 0) -> NetworkRun:
        """What the network descends at every step, where it is an ordinary one.

        Raises:
            SettingError: gradients of samples that are clipped or noisy, another member than 0.
        """
        check_whole("member", member, 0, 0)
        objective = self.objective
        steps = {"max_norm": objective.max_norm, "noise_multiplier": objective.noise_multiplier}
        return ordinary_run(self.module, self._batches, self.source.loss, steps)


def _check(max_norm: float, noise: float, chunk_size: ChunkSize, seed: int) -> None:
    check_whole("seed", seed, 0, 2**63 - 1)
    accepted = "a number above 0 is needed, or infinity"
    check_number("max_norm", max_norm, above=0, infinite=True, accepted=accepted)
    check_number("noise_multiplier", noise, least=0)
    if noise and math.isinf(max_norm):
        raise SettingError("noise_multiplier", noise, "noise needs a finite max_norm")
    if chunk_size is not None and chunk_size != "auto":
        check_whole("chunk_size", chunk_size, 1)
