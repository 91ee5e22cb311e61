"""What every training of an ensemble on labelled data is assembled from.

Axes: M members, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.memory import parse_bytes
from metalearn.data import Augmentation, ClassificationData, MemberBatches
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation import OODScores, ood_scores, uncertainty_scores
from metalearn.models import Ensemble, Predictor
from metalearn.random_streams import check_split
from metalearn.signatures import checked
from metalearn.tracking import NullTracker, Tracker
from metalearn.trainers.diagnostics import DiagnosisData, DiagnosticSource
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.loop import Loop
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.protocols import Callback
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.members.population import Population
from metalearn.trainers.members.settings import PerMember, member_values
from metalearn.trainers.supervised.batches import TrainingBatches
from metalearn.trainers.supervised.ensemble_evaluation import EnsembleEvaluator, Validation
from metalearn.trainers.supervised.ensemble_figures import draw_sweeps, draw_uncertainty
from metalearn.trainers.supervised.ensemble_objective import EnsembleObjective
from metalearn.trainers.supervised.ensemble_source import EnsembleSource, member_source
from metalearn.trainers.supervised.member_planner import MemberPlanner, PlannedEngine
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.predictions import MemberLogits, logits_of
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.trainers.supervised.scoring import check_outputs, score_split
from metalearn.types import Split

__all__ = ["EnsembleTraining"]

_LARGEST_RATE = 1e36  # a step of ten times that is still a number of float32

Shuffle = Literal["member", "shared"]


class EnsembleTraining:
    """Objective, evaluator, population and tests of members on labelled data.

    Args:
        model: the members; trained in place.
        data: labelled samples in three splits.
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
        data: ClassificationData,
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
        monitor: Monitor = "loss",
        engine: PlannedEngine = "auto",
        chunk_size: int | None = None,
        memory: str | int | None = None,
        member_curves: bool = False,
        ood: ClassificationData | None = None,
        optimizer: OptimizerFactory | None = None,
        tracker: Tracker | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        **settings: Annotated[Any, LoopSettings],
    ) -> None:
        _check_choices(monitor=monitor, engine=engine, shuffle=shuffle)
        if bootstrap and shuffle == "shared":
            raise SettingError("shuffle", shuffle, "member is needed beside bootstrap")
        self.settings = LoopSettings(steps=steps, **settings)
        self.device = place(model, device)
        self.ensemble, self.data, self.ood = model, data, ood
        self.seeds = _checked_seeds(seeds, len(model))
        self.stop = StopSignal()
        self.own = _own_settings(len(model), lr, weight_decay, label_smoothing, dropout)
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
        )
        self.planner = _planner(engine, chunk_size, memory, self.settings, self.device)
        self.logits = MemberLogits(self.planner, self.stop)
        self._assemble_parts(validation or Validation(), monitor, member_curves)
        self._rest: dict[str, Any] = {"optimizer": optimizer, "tracker": tracker, "folder": folder}

    def _assemble_parts(
        self, validation: Validation, monitor: Monitor, member_curves: bool
    ) -> None:
        """Evaluator, population, objective and what diagnostics look at."""
        self.evaluator = EnsembleEvaluator(
            self.ensemble,
            self.logits,
            self.data,
            monitor,
            validation,
            member_curves=member_curves,
            device=self.device,
        )
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
        )
        self.source = EnsembleSource(self.objective)
        self._check_outputs(validation.scored(self.ensemble))

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
            **self._rest,
        )

    @checked
    def predict(self, model: Predictor, inputs: Tensor) -> Tensor:
        """Logits of every member of a model, ``[M, N, C]``, in evaluation mode."""
        return self.logits(model, inputs)

    def test(self, model: Predictor, split: Split, step: int, tracker: Tracker) -> EnsembleTest:
        """Scores of a model on a split, temperature, out-of-distribution tests; figures of them."""
        check_split(split)
        drawing = not isinstance(tracker, NullTracker)
        predict, device = partial(self.logits, model), self.device
        found = score_split(predict, self.data, split, members=len(model), device=device)
        scores: dict[str, OODScores] = {}
        if self.ood is not None:
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
        return replace(found, ood=scores)

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
        yield "members", member_source(self.ensemble, batch, data)

    def _check_outputs(self, model: Predictor) -> None:
        """Run a few samples through the members before any training."""
        name, shape = type(self.ensemble.member(0)).__name__, list(self.data.input_shape)
        wanted = [len(model), 2, self.data.outputs]
        predict = partial(self.logits, model)
        check_outputs(name, predict, self.data, wanted, device=self.device)
        if self.ood is not None and self.ood.input_shape != self.data.input_shape:
            raise SettingError("ood", list(self.ood.input_shape), f"inputs {shape} are needed")


def _own_settings(
    count: int,
    lr: PerMember,
    weight_decay: PerMember,
    label_smoothing: PerMember,
    dropout: PerMember,
) -> dict[str, list[float] | None]:
    """Settings with a value for each member."""
    return {
        "lr": member_values("lr", lr, count, below=_LARGEST_RATE),
        "weight_decay": member_values("weight_decay", weight_decay, count),
        "label_smoothing": member_values("label_smoothing", label_smoothing, count, below=1),
        "dropout": member_values("dropout", dropout, count, below=1),
    }


def _planner(
    engine: PlannedEngine,
    chunk_size: int | None,
    memory: str | int | None,
    settings: LoopSettings,
    device: torch.device,
) -> MemberPlanner:
    if chunk_size is not None:
        check_whole("chunk_size", chunk_size, 1)
    if memory is not None:
        parse_bytes(memory)
    return MemberPlanner(
        engine=engine,
        chunk_size=chunk_size,
        memory=memory,
        deterministic=settings.deterministic,
        device=device,
    )


def _checked_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    found = list(range(count)) if seeds is None else list(seeds)
    if len(found) != count:
        raise SettingError("seeds", found, f"{count} are needed, one for each member")
    for seed in found:
        check_whole("seeds", seed, 0, 2**63 - 1)
    return found


def _check_choices(**given: str) -> None:
    known = {"monitor": Monitor, "engine": PlannedEngine, "shuffle": Shuffle}
    for name, value in given.items():
        kinds = get_args(known[name])
        if value not in kinds:
            raise SettingError(name, value, f"one of {', '.join(kinds)} is needed")
