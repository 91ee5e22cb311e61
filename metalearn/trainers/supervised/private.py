"""Supervised training under differential privacy, with an account of what it has spent.

Axes: N samples of the training part, B of a batch as expected, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from metalearn.data import Augmentation
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, check_whole
from metalearn.privacy import CorrelatedNoise, banded_strategy
from metalearn.ranks import Ranks
from metalearn.signatures import checked
from metalearn.tracking import TrackerChoice
from metalearn.trainers.loop.assembly import place
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.private.following import ClipQuantile, following_norm, with_norm
from metalearn.trainers.private.growing import BatchGrowth, GrowthPlan, growing_batch
from metalearn.trainers.private.noisy_validation import NoisyAccuracy, validation_account
from metalearn.trainers.private.options import PrivacyOptions
from metalearn.trainers.private.reports import data_checksum, remarks, results
from metalearn.trainers.private.settings import PrivacySettings
from metalearn.trainers.supervised import sample_methods as methods
from metalearn.trainers.supervised.batches import LabelledBatch
from metalearn.trainers.supervised.ensemble_settings import check_monitor
from metalearn.trainers.supervised.losses import LossSetting, chosen_loss
from metalearn.trainers.supervised.metrics import Metrics, check_metrics
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.private_objective import PrivateBatches, PrivateObjective
from metalearn.trainers.supervised.sample_training import SampleTraining, without_mixing
from metalearn.trainers.trainer import Trainer

__all__ = ["PrivateTrainer"]

_VALIDATION = "validation=public or noisy"


class PrivateTrainer(Trainer):
    """Trains one module by DP-SGD, (ε, δ)-differentially private in the samples it is trained on.

    The gradient of a step is (1/B)·(Σ_i g_i·min(1, C/‖g_i‖) + σ·C·z) over a batch that is drawn by
    chance, z standard normal (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016).
    The account writes every step down, and to the disk, before its batch is drawn, so that a step
    counts even where the process ends in it; going on with other settings, from an earlier
    checkpoint or in another run with the same ``ledger`` adds to it. Losses, norms and batch sizes
    of training are not recorded, since no noise is on them.

    Private are the samples of the training part, whichever the released weights are; the validation
    split is read only where it is said to be public, the test split by who tests. Not private are
    the choice of settings by several runs, unless all of them share a ledger, and the time that
    steps take.

    Args:
        model: outputs ``[N, C]``; trained in place, or a copy of it where ``batch_norm`` is set.
        data: samples in three splits, with classes or real targets.
        seed: of dropout masks; where noise is seeded, of batches, augmentation and noise too.
        steps: in all.
        batch_size: B; Poisson sampling takes each of the N samples with the chance q = B/N by
            itself, so that batches vary in size and may be empty.
        epsilon: ε that the steps are to cost, of all ``runs``: σ is the least that keeps to it.
        noise_multiplier: σ, above 0, in the place of ``epsilon``.
        noise_bands: b, above 1 for noise that takes part of that of the b − 1 steps before back, so
            that less is left in the sum over steps, for more noise in each: for SGD at a constant
            rate, with or without momentum, and many samples; at most N/B. Earlier noise is in no
            checkpoint, so that a resumed run begins anew. See `metalearn.privacy.BandedGaussian`.
        delta: δ, below 1/N.
        max_norm: C, of a sample's gradient, finite.
        clipping: ``"flat"``, or ``"automatic"``, in which all samples count with nearly the same
            norm; see `metalearn.core.clipped_gradient`.
        clip_groups: of parameters that are clipped by themselves: ``"all"``, ``"layers"``, or names
            with patterns; see there.
        sampling: ``"poisson"``; ``"fixed_size"``, B of N without replacement, whose neighbours
            differ in one sample's value; or ``"shuffled"`` epochs, for which no amplification by
            sampling is claimed. See `metalearn.privacy.SampledGaussian`.
        accountant: ``"pld"``, which is tight, or ``"rdp"``.
        noise: ``"secure"``: batches and noise come from the system's generator, and a run cannot be
            repeated bit by bit; ``"seeded"``: it can, and there is no ε.
        ledger: file that several runs on the same data share; ``privacy.jsonl`` in the run's folder
            by default. Without either the account ends with the process.
        runs: how many such runs share ``epsilon`` by one ledger, as those of a sweep, or members of
            an ensemble.
        reserve: how many steps are written down at once and synced to the disk (some milliseconds);
            those that a run does not come to are spent all the same.
        validation: ``"none"``: the validation split is not read, and the last state is kept;
            ``"public"``: its samples are nobody's secret, and choose the best state; ``"noisy"``:
            they are private as those of the training part are, and chosen by is their share of
            right answers, with noise; see `metalearn.trainers.private.noisy_validation`. Whoever
            calls `validate` spends a score.
        validation_noise: σ of a noisy score, above 0: a score of V samples has σ/(2V) for standard
            deviation. None is the least with which the scores of all ``runs`` cost what the steps
            do: as no sample is in both parts, ε of the whole is the larger of the two.
        clip_quantile: such as 0.5: C begins as ``max_norm`` and follows this quantile of the norms,
            out of the same ε; or ``{"quantile": 0.5, "rate": 0.2, "noise": 10}``, by which it moves
            and the noise of the count of norms within it (B/20 by default). See
            `metalearn.privacy.QuantileNorm`.
        batch_growth: such as 1024: the expected batch begins as ``batch_size`` and doubles, at most
            to this, where the mean of a step is mostly noise; σ is such that half of the steps
            could be as large. Or ``{"most": 1024, "share": 0.5, "threshold": 1.0, "window": 10}``:
            for what share of the steps there is room, above which ratio of a mean's variance to
            ‖G‖² it doubles, and over how many steps they are measured. Needs ``accountant="rdp"``
            and Poisson sampling. See `metalearn.privacy.RenyiFilter`.
        batch_norm: as for `PerSampleTrainer`, as are the following.
        chunk_size: samples at a time, which changes nothing else; ``"auto"`` is decided on zeros.
        method: see there.
        max_shift, flip, rotate: see there.
        loss: see there.
        metrics: see there.
        monitor: what decides which state is best; None is the loss, and of noisy scores their
            accuracy. ``"accuracy"``, as ``patience``, needs a validation.
        optimizer: see there.
        tracker: see there.
        folder: of the run, for checkpoints and the account.
        device: see there.
        ranks: see there; the first draws batches and noise for all and keeps the account. What
            they tell each other, such as sums without noise, is private: nobody else may hear it.
        settings: the rest of `LoopSettings` by name, without diagnostics, accumulated batches or a
            lower precision; ``clip`` is that of the noisy mean.

    Raises:
        SettingError: a setting out of range, a model whose samples depend on each other or that
            does not fit the data, both or none of ``epsilon`` and ``noise_multiplier``.
        DataError: a ledger that is damaged.
    """

    makes_module: ClassVar[tuple[str, ...]] = ("batch_norm", "loss")
    chooses_best: ClassVar[tuple[str, ...]] = ("validation",)

    @checked
    def __init__(
        self,
        model: nn.Module,
        data: SupervisedData,
        *,
        seed: int = 0,
        steps: int = 1000,
        batch_size: int = 256,
        max_norm: float = 1.0,
        clipping: Clipping = "flat",
        clip_groups: ParameterGroups = "all",
        noise_bands: int = 1,
        clip_quantile: ClipQuantile = None,
        batch_growth: BatchGrowth = None,
        batch_norm: BatchNormPolicy | None = None,
        chunk_size: ChunkSize = None,
        method: SampleMethod = "layers",
        max_shift: int = 0,
        flip: bool = False,
        rotate: float = 0.0,
        loss: LossSetting = None,
        metrics: Metrics | None = None,
        monitor: Monitor | None = None,
        validation_noise: float | None = None,
        optimizer: OptimizerFactory | None = None,
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        **settings: Unpack[PrivacyOptions],
    ) -> None:
        _check(seed, max_norm, method)
        monitor = _monitor(monitor, private := PrivacySettings(**settings), data, validation_noise)
        limits = private.limits(steps, {"monitor": (monitor, "loss")}, needed=_VALIDATION)
        sizes = data.size("train"), batch_size, steps
        growth = private.growth(batch_growth, *sizes, noise_bands, clip_quantile)
        account = private.account(*sizes, folder, bands=noise_bands, growth=growth, ranks=ranks)
        self.data, self.seed, self.epsilon, self.account = data, seed, private.epsilon, account
        strategy, self.mechanism = banded_strategy(steps, noise_bands), private.mechanism
        self.noise, clipped = CorrelatedNoise(strategy), (max_norm, clipping, clip_groups)
        self.following = following_norm(clip_quantile, *clipped, self.mechanism)
        chosen, model = chosen_loss(loss, data), without_mixing(model, batch_norm)
        where = place(model, device)
        self.augmentation = Augmentation(max_shift=max_shift, flip=flip, rotate=rotate)
        batches = self._batches(private, growth, steps, where, ranks)
        objective = partial(
            PrivateObjective, noise=self.noise, following=self.following, groups=clip_groups,
            placeholder=partial(_zeros, data, growth.most if growth else batch_size, where),
            validation=private.validation, seed=seed, method=method, clipping=clipping,
            chunk_size=chunk_size, expected=batch_size, max_norm=float(max_norm),
            deterministic=limits.deterministic, criterion=chosen.weighted_mean,
        )  # fmt: skip
        self.training = SampleTraining(
            model, data, batches, objective, chosen, seed=seed, metrics=check_metrics(metrics),
            monitor=monitor if private.validation == "public" else None, device=where,
            vectorize=method != "loop", apart=True, ranks=ranks,
        )  # fmt: skip
        self.objective, self.noisy = self.training.objective, self._noisy(private, validation_noise)
        rest: Any = {"optimizer": optimizer, "tracker": tracker, "folder": folder}
        super().__init__(self.training.loop(limits, **rest))

    loss = methods.loss
    predict = methods.predict
    test = methods.score
    reports = methods.reports
    diagnosis_sources = methods.diagnosis_sources
    params = methods.params
    plan = methods.plan
    data_checksum = data_checksum

    def _noisy(self, private: PrivacySettings, noise: float | None) -> NoisyAccuracy | None:
        """What scores the validation split with noise, where it is private too."""
        if private.validation != "noisy":
            return None
        training, known = self.training, None if private.secure else self.seed
        account = validation_account(private, self.account, training.data.size("validation"), noise)
        right = partial(training.right, "validation")
        how: Any = {"every": private.every, "seed": known, "ranks": training.ranks}
        found = NoisyAccuracy(right, account, **how)
        training.evaluator = found
        return found

    def remarks(self) -> list[str]:
        """What it has cost, in a line or two."""
        scores = [] if self.noisy is None else self.noisy.remarks(self.epsilon)
        return [*remarks(self), *scores]

    def results(self) -> Mapping[str, Any]:
        """What the training has cost so far, as plain values."""
        found = results(self)
        if self.noisy is not None:
            found = {"privacy": {**found["privacy"], "validation": self.noisy.summary()}}
        return found if self.following is None else with_norm(found, self.following)

    def _batches(
        self,
        private: PrivacySettings,
        growth: GrowthPlan | None,
        steps: int,
        device: torch.device,
        ranks: Ranks | None,
    ) -> PrivateBatches:
        """What draws the batches that the account has."""
        known, units = None if private.secure else self.seed, self.data.splits["train"]
        self.growing = growing_batch(growth, self.account, units, steps, known)
        drawn = self.growing or private.draws(units, self.seed)
        return PrivateBatches(
            self.account, drawn, self.data, self.augmentation, known, device, steps,
            private.reserve, self.growing, ranks,
        )  # fmt: skip


def _check(seed: int, max_norm: float, method: str) -> None:
    check_whole("seed", seed, 0, 2**63 - 1)
    check_mode("method", method, get_args(SampleMethod))
    accepted = "a finite number above 0 is needed"
    check_number("max_norm", max_norm, above=0, below=math.inf, accepted=accepted)


def _monitor(
    given: Monitor | None, private: PrivacySettings, data: SupervisedData, noise: float | None
) -> Monitor:
    """What decides which state is best.

    Raises:
        SettingError: it does not fit the data or the validation, or noise there is no use for.
    """
    noisy = private.validation == "noisy"
    if noisy and data.kind == "regression":
        accepted = "none or public is needed: real targets have no right answers to be counted"
        raise SettingError("validation", private.validation, accepted)
    if noisy and given == "loss":
        accepted = "accuracy is needed with validation=noisy, which counts right answers"
        raise SettingError("monitor", given, accepted)
    if noise is not None and not noisy:
        accepted = f"null is needed with validation={private.validation}"
        raise SettingError("validation_noise", noise, accepted)
    monitor: Monitor = given if given is not None else "accuracy" if noisy else "loss"
    check_monitor(monitor, data)
    return monitor


def _zeros(data: SupervisedData, count: int, device: torch.device) -> LabelledBatch:
    """Inputs and targets like those of data, of so many samples, with nothing of the data in it."""
    sample: Sequence[torch.Tensor] = data.take(data.splits["train"][:1], device=device)
    return tuple(part.new_zeros((count, *part.shape[1:])) for part in sample)
