"""What every training of an ensemble on labelled data is assembled from.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from metalearn.data import Augmentation, ClassificationData, MemberBatches
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.evaluation import OODScores, ood_scores, uncertainty_scores
from metalearn.models import Ensemble, Predictor
from metalearn.random_streams import check_split
from metalearn.ranks import OneRank, Ranks
from metalearn.signatures import checked
from metalearn.tracking import NullTracker, Tracker, TrackerChoice
from metalearn.trainers.diagnostics import DiagnosisData, DiagnosticSource
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.loop import Loop
from metalearn.trainers.loop.options import LoopOptions
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.protocols import Callback, Evaluator
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.loop.unvalidated import Unvalidated
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.settings import PerMember
from metalearn.trainers.supervised.batches import TrainingBatches
from metalearn.trainers.supervised.ensemble_evaluation import EnsembleEvaluator, Validation
from metalearn.trainers.supervised.ensemble_figures import draw_sweeps, draw_uncertainty
from metalearn.trainers.supervised.ensemble_objective import EnsembleObjective
from metalearn.trainers.supervised.ensemble_settings import (
    Shuffle,
    check_beside_loss,
    check_choices,
    check_monitor,
    checked_seeds,
    made_planner,
    own_settings,
)
from metalearn.trainers.supervised.ensemble_source import EnsembleSource, member_source
from metalearn.trainers.supervised.losses import LossSetting, chosen_loss
from metalearn.trainers.supervised.member_planner import PlannedEngine
from metalearn.trainers.supervised.member_weights import MemberWeights, example_weights
from metalearn.trainers.supervised.metrics import Metrics, check_metrics, with_measures
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.network_run import (
    NetworkRun,
    example_weights_of,
    step_batches,
)
from metalearn.trainers.supervised.predictions import MemberLogits, logits_of, report_of, shared_by
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.supervised.scoring import check_outputs, score_split
from metalearn.types import Split

__all__ = ["EnsembleTraining"]


class EnsembleTraining:
    """Objective, evaluator, population and tests of members on labelled data.

    Args:
        model: the members; trained in place.
        data: samples in three splits, with classes or real targets.
        validation: what is scored, and which state is kept for it.
        settings: see `EnsembleTrainer`, where each is described.

    Raises:
        SettingError: a setting out of range, lists of another length than M, a model that does not
            fit the data.
    """

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: SupervisedData,
        validation: Validation | None = None,
        /,
        *,
        seeds: Sequence[int] | None = None,
        steps: int = 1000,
        batch_size: int = 64,
        shuffle: Shuffle = "member",
        bootstrap: bool = False,
        max_shift: int = 0,
        flip: bool = False,
        rotate: float = 0.0,
        lr: PerMember = None,
        weight_decay: PerMember = None,
        label_smoothing: PerMember = 0.0,
        dropout: PerMember = None,
        member_weights: MemberWeights = None,
        loss: LossSetting = None,
        metrics: Metrics | None = None,
        monitor: Monitor = "loss",
        engine: PlannedEngine = "auto",
        chunk_size: int | None = None,
        memory: str | int | None = None,
        member_curves: bool = False,
        ood: ClassificationData | None = None,
        optimizer: OptimizerFactory | None = None,
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        **settings: Unpack[LoopOptions],
    ) -> None:
        check_choices(engine, shuffle, bootstrap=bootstrap)
        check_monitor(monitor, data)
        self.loss, self.metrics = chosen_loss(loss, data), check_metrics(metrics)
        self.settings = LoopSettings(steps=steps, **settings)
        self.ensemble, self.device = model, place(model, device)
        self.data, self.ood, self.ranks = data, ood, ranks or OneRank()
        self.seeds, self.stop = checked_seeds(seeds, len(model)), StopSignal()
        self.own = own_settings(len(model), lr, weight_decay, label_smoothing, dropout)
        check_beside_loss(self.loss, data, self.own["label_smoothing"], ood)
        self.batches = TrainingBatches(
            data,
            MemberBatches(
                data.splits["train"],
                batch_size=batch_size,
                seeds=self.seeds if shuffle == "member" else self.seeds[:1] * len(model),
                bootstrap=bootstrap,
            ),
            Augmentation(max_shift=max_shift, flip=flip, rotate=rotate),
            self.seeds,
            self.device,
            example_weights(member_weights, len(model), data, self.device),
        )
        self.planner = made_planner(engine, chunk_size, memory, self.settings, self.device)
        self._assemble_parts(validation or Validation(), monitor, member_curves)
        self._rest: dict[str, Any] = {"optimizer": optimizer, "tracker": tracker, "folder": folder}

    def _assemble_parts(
        self, validation: Validation, monitor: Monitor, member_curves: bool
    ) -> None:
        """Evaluator, population, objective and what diagnostics look at."""
        self.logits = MemberLogits(self.planner, self.stop)
        self.evaluator = self._evaluator(validation, monitor, member_curves)
        self.population = Population(
            self.ensemble,
            clip=self.settings.clip,
            patience=self.settings.patience,
            larger_is_better=self.evaluator.larger_is_better,
            kept=validation.kept,
        )
        smoothing = self.own["label_smoothing"] or [0.0] * len(self.ensemble)
        self.objective = EnsembleObjective(
            self.ensemble,
            self.population,
            self.batches,
            self.planner,
            smoothing=torch.tensor(smoothing, device=self.device),
            seeds=self.seeds,
            dropout=self.own["dropout"],
            stop=self.stop,
            criterion=self.loss.criterion,
        )
        self.source = EnsembleSource(self.objective, self.loss)
        self._check_outputs(validation.scored(self.ensemble))

    def _evaluator(
        self, validation: Validation, monitor: Monitor, member_curves: bool
    ) -> Evaluator:
        """What scores the validation split, and what is measured there beside the scores."""
        data, device, together = self.data, self.device, validation.together
        members = len(validation.scored(self.ensemble))
        if validation.skipped:
            return Unvalidated(members)

        def predict(inputs: Tensor) -> Tensor:
            return self.logits(validation.scored(self.ensemble), inputs)

        second = "accuracy" if data.kind == "classification" else "rmse"
        every = shared_by(self.ranks, predict, self.stop)
        found = EnsembleEvaluator(
            partial(report_of, every, data, "validation", members=members, device=device),
            {"loss": "nll", second: second},
            monitor,
            together=together,
            member_curves=member_curves,
        )
        asked: Any = {"metrics": self.metrics, "loss": self.loss, "monitor": monitor}
        return with_measures(found, every, data, **asked, device=device, together=together)

    def loop(
        self,
        *,
        schedule: Callable[[int], float] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Loop:
        """The loop of these parts.

        Args:
            schedule: factor of the learning rate at a step; None is that of the settings.
            callbacks: that look on, beside the diagnostics.
        """
        return assemble(
            self.ensemble,
            self.objective,
            self.evaluator,
            population=self.population,
            settings=self.settings,
            rates=self.own["lr"],
            decays=self.own["weight_decay"],
            source=self.source,
            schedule=schedule,
            callbacks=callbacks,
            stop=self.stop,
            device=self.device,
            ranks=self.ranks,
            **self._rest,
        )

    @checked
    def predict(self, model: Predictor, inputs: Tensor) -> Tensor:
        """Outputs of every member of a model, ``[M, N, C]``, in evaluation mode."""
        return self.logits(model, inputs)

    def test(
        self, model: Predictor, split: Split, step: int, tracker: Tracker
    ) -> EnsembleTest | RegressionTest:
        """Scores of a model on a split; of classes also temperature, out-of-distribution tests."""
        check_split(split)
        drawing = not isinstance(tracker, NullTracker)
        predict, device = shared_by(self.ranks, partial(self.logits, model), self.stop), self.device
        found = score_split(
            predict, self.data, split, members=len(model), device=device, metrics=self.metrics
        )
        scores: dict[str, OODScores] = {}
        if self.ood is not None and isinstance(found, EnsembleTest):
            inside = found.report.uncertainty
            outside = uncertainty_scores(logits_of(predict, self.ood, "test", device=device)[0])
            draws = torch.Generator().manual_seed(0)
            scores = {
                name: ood_scores(values, outside[name], generator=draws)
                for name, values in inside.items()
            }
            if drawing:
                draw_uncertainty(tracker, step, inside, outside, scores)
        if drawing:
            swept = {n: v for n, v in self.own.items() if v and len(set(v)) > 1}
            draw_sweeps(tracker, step, swept, found.report)
        return replace(found, ood=scores) if isinstance(found, EnsembleTest) else found

    def network_run(self, member: int, update: Any) -> NetworkRun:
        """What one member descends at every step; ``update`` knows its rate and decay."""
        return NetworkRun(
            self.ensemble.member(member),
            self.data,
            example_weights_of(self.batches, member),
            step_batches(self.batches, member),
            self.batches,
            self.loss,
            self.objective.smoothing[member],
            float(update.rates[member]),
            None if update.decays is None else float(update.decays[member]),
        )

    def member_settings(self) -> list[dict[str, float]]:
        """What was set for each member: its seed, and what was given as a list."""
        rows: list[dict[str, float]] = [{"seed": seed} for seed in self.seeds]
        for name, values in self.own.items():
            for row, value in zip(rows, values or []):
                row[name] = value
        return rows

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """All members on samples of a split, in evaluation mode."""
        indices = self.data.splits[data.split][: data.samples]
        batch = self.data.take(indices, device=self.device)
        self.ensemble.eval()
        yield "members", member_source(self.ensemble, batch, data, self.loss)

    def _check_outputs(self, model: Predictor) -> None:
        """Run a few samples through the members before any training."""
        name, shape = type(self.ensemble.member(0)).__name__, list(self.data.input_shape)
        predict, weighted = partial(self.logits, model), self.batches.weights is not None
        how: Any = {"members": len(model), "device": self.device, "weighted": weighted}
        check_outputs(name, predict, self.data, self.loss, **how)
        if self.ood is not None and self.ood.input_shape != self.data.input_shape:
            raise SettingError("ood", list(self.ood.input_shape), f"inputs {shape} are needed")
