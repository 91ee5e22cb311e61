"""Training an ensemble on labelled data: M networks as one.

Axes: M members, B samples of a batch, N samples of a split, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from metalearn.core.checks import module_takes
from metalearn.core.ensemble.stacking import MemberEngine
from metalearn.core.memory import parse_bytes
from metalearn.core.tree import check_tensors
from metalearn.core.vectorization import VectorizationError, vmapped_or_looped
from metalearn.data import Augmentation, ClassificationData, MemberBatches, augment
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation import (
    EnsembleReport,
    OODScores,
    fit_temperature,
    ood_scores,
    uncertainty_scores,
)
from metalearn.models import Ensemble, Predictor
from metalearn.random_streams import check_split
from metalearn.schema import Kind, choice, list_of, mapping, maybe, number, text, whole
from metalearn.signatures import checked
from metalearn.tracking import NullTracker, Tracker
from metalearn.trainers.base import OptimizerFactory, StepReport
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticSource,
    GradientUnits,
    PredictiveModels,
)
from metalearn.trainers.ensemble_diagnostics import (
    member_kinds,
    member_models,
    member_samples,
    member_source,
)
from metalearn.trainers.ensemble_figures import draw_sweeps, draw_uncertainty, draw_validation
from metalearn.trainers.ensemble_gradients import classification_gradients, unused_by_stacks
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.member_trainer import MemberTrainer
from metalearn.trainers.members.settings import (
    MemberPlan,
    PerMember,
    member_values,
    plan_members,
    set_dropout,
)
from metalearn.trainers.nan_scores import check_members
from metalearn.trainers.planning import keeps, memory_budget
from metalearn.trainers.sample_reports import EnsembleTest
from metalearn.trainers.supervised.predictions import logits_of, report_of
from metalearn.types import Split

__all__ = ["EnsembleTest", "EnsembleTrainer"]

log = logging.getLogger(__name__)

_LARGEST_RATE = 1e36  # a step of ten times that is still a number of float32

Engine = Literal["auto", "batched", "loop"]
Monitor = Literal["loss", "accuracy"]
Shuffle = Literal["member", "shared"]


class EnsembleTrainer(MemberTrainer):
    """Trains an `Ensemble` on labelled data, every member as if alone.

    Member k with seed s sees the batches, the augmentation and the dropout masks that a run of it
    alone with that seed sees. A `Dropout` layer's rate, the learning rate, weight decay and label
    smoothing may be lists, one value for each member: a sweep is one run.

    Args:
        model: the members, outputs ``[B, C]`` each; trained in place.
        data: labelled samples in three splits.
        members: M, checked against the model; None takes the model's.
        seeds: of each member's data order, augmentation and dropout; None is 0..M−1.
        steps: in all.
        batch_size: B.
        shuffle: ``"member"``, every member has an order and augmentation of its own;
            ``"shared"``, all have those of the first seed.
        bootstrap: every member has a resample of the training part of its own, so an order too.
        max_shift, flip, rotate: augmentation of pictures; see `metalearn.data.Augmentation`.
        lr: learning rate of each member; None is the optimiser's.
        weight_decay: of each member; None is the optimiser's.
        label_smoothing: of each member, in [0, 1).
        dropout: rate of each member's `Dropout` layers, in [0, 1); None leaves them.
        monitor: what decides which state of a member is best, on the validation split.
        engine: ``"batched"``, ``"loop"``, or ``"auto"``: batched, unless the loop is measured to
            be clearly faster (see `plan_members`); decided once.
        chunk_size: members at a time; None is all, or what fits ``memory``.
        memory: what gradients may take, for example ``"2GB"``; None is what the device has free.
        member_curves: record every member's curve as well.
        ood: a second data set, whose test split should be found uncertain.
        optimizer: makes the optimiser of the stacked parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go.
        folder: of the run, for checkpoints.
        device: where to train.
        settings: the rest of `LoopSettings` by name. ``clip`` and ``patience`` are each member's.

    Raises:
        SettingError: a setting out of range, lists of another length than M, an optimiser that
            would mix members, a model that does not fit the data.
    """

    networks: ClassVar[int | None] = None
    """How many networks are trained; None: as many as members."""
    unit = "samples"
    ensemble: Ensemble

    @checked
    def __init__(
        self,
        model: Ensemble,
        data: ClassificationData,
        *,
        members: int | None = None,
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
        engine: Engine = "auto",
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
        count = len(model)
        if members is not None and not (type(members) is int and members == count):
            raise SettingError("members", members, f"the model has {count} members")
        _check_choices(monitor=monitor, engine=engine, shuffle=shuffle)
        if bootstrap and shuffle == "shared":
            raise SettingError("shuffle", shuffle, "member is needed beside bootstrap")
        if chunk_size is not None:
            check_whole("chunk_size", chunk_size, 1)
        if memory is not None:
            parse_bytes(memory)
        super().__init__(
            model,
            LoopSettings(steps=steps, **settings),
            optimizer=optimizer,
            tracker=tracker,
            folder=folder,
            device=device,
        )
        self.data, self.ood, self.ensemble = data, ood, model
        self.seeds = list(range(count)) if seeds is None else list(seeds)
        if len(self.seeds) != count:
            raise SettingError("seeds", self.seeds, f"{count} are needed, one for each member")
        for seed in self.seeds:
            check_whole("seeds", seed, 0, 2**63 - 1)
        self.monitor = f"validation/member_{monitor}"
        self.larger_is_better = monitor == "accuracy"
        self.engine, self.chunk_size, self.memory = engine, chunk_size, memory
        self.member_curves = member_curves
        self.plan: MemberPlan | None = None
        self._own = {
            "lr": member_values("lr", lr, count, below=_LARGEST_RATE),
            "weight_decay": member_values("weight_decay", weight_decay, count),
            "label_smoothing": member_values("label_smoothing", label_smoothing, count, below=1),
            "dropout": member_values("dropout", dropout, count, below=1),
        }
        smoothing = self._own["label_smoothing"] or [0.0] * count
        self._smoothing = torch.tensor(smoothing, device=self.device)
        set_dropout(model, self.seeds, self._own["dropout"])
        self.batches = MemberBatches(
            data.splits["train"],
            batch_size=batch_size,
            seeds=self.seeds if shuffle == "member" else self.seeds[:1] * count,
            bootstrap=bootstrap,
        )
        self.augmentation = Augmentation(max_shift=max_shift, flip=flip, rotate=rotate)
        self.begin_members(self._own["lr"], self._own["weight_decay"])
        self._history: dict[str, list[list[float]]] = {"step": [], "loss": [], "accuracy": []}
        self._check_outputs()
        self.begin_diagnostics()

    def prepare(self) -> None:
        """Decide how gradients are taken; a plan from a checkpoint is said as well."""
        if self.plan is not None:
            log.info("%s", self.plan)
        self._settle()

    def gradient(self, step: int) -> StepReport:
        """Every member's loss and gradient on its batch of step ``step``."""
        self._settle()
        assert self.plan is not None
        batch = self._batch(step)
        return self._gradients(batch, self.active, self.plan.engine, self.plan.chunk_size)

    def unused_parameters(self) -> list[str]:
        """Those of the loss of the first batch, of the first member of each stack."""
        self.ensemble.train()
        return unused_by_stacks(self.ensemble, self._batch(0), self._smoothing)

    def validate(self) -> Mapping[str, float]:
        """Scores of members and ensemble on the validation split."""
        report = self._report(self.validated(), "validation")
        self._scores = report.members
        members = {"loss": report.members.nll, "accuracy": report.members.accuracy}
        numbers = {f"validation/{name}": value for name, value in report.ensemble().items()}
        for name, values in members.items():
            numbers[f"validation/member_{name}"] = float(values.median())
            numbers[f"validation/member_{name}_low"] = float(values.min())
            numbers[f"validation/member_{name}_high"] = float(values.max())
        if not isinstance(self.tracker, NullTracker):
            if self.member_curves:
                for name, values in members.items():
                    rows = {f"member_{i:02d}": float(v) for i, v in enumerate(values)}
                    self.tracker.curves(self.step, f"validation_{name}_by_member", rows)
            self._note(members)
            draw_validation(self.tracker, self.step, report, self._history)
        return numbers

    def validated(self) -> Predictor:
        """What validation scores: the members as they stand."""
        return self.ensemble

    def predictive(self) -> Predictor:
        """What training was for, and `test` and `predict` use: a callable ``x → [M, B, C]``."""
        return self.validated()

    @property
    def bands(self) -> dict[str, list[str]]:
        """Of members: median and extremes."""
        names = ["validation/member_accuracy", "validation/member_loss"]
        names += ["train/member_loss", "train/member_gradient_norm"]
        return {"members: median and extremes": names}

    def member_scores(self) -> Tensor:
        """``[M]``: validation accuracy or loss of each member."""
        return self._scores.accuracy if self.larger_is_better else self._scores.nll

    def log_training(self, step: int, report: StepReport) -> Mapping[str, float]:
        """Spread of the members' losses and gradient norms."""
        assert report.member_losses is not None
        numbers = {"train/members_active": float(self.active.sum())}
        if not self.active.any():
            return numbers
        for name, values in (
            ("member_loss", report.member_losses.cpu()),
            ("member_gradient_norm", self.norms),
        ):
            kept = values[self.active]
            numbers[f"train/{name}"] = float(kept.median())
            numbers[f"train/{name}_low"] = float(kept.min())
            numbers[f"train/{name}_high"] = float(kept.max())
        return numbers

    def diagnostic_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        return self._batch(step)

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """Samples of each member, members, and what members predict."""
        self.ensemble.train()
        return member_kinds(self.ensemble)

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """Each member's samples with its own loss, or the members."""
        if kind == "member":
            return self.member_units(grads)
        return member_samples(self.ensemble, batch, self._smoothing, self.active)

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """Each member on its batch."""
        return member_models(self.ensemble, batch, self.active)

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """All members on samples of a split, in evaluation mode."""
        indices = self.data.splits[data.split][: data.samples]
        batch = self.data.take(indices, device=self.device)
        self.module.eval()
        yield "members", member_source(self.ensemble, batch, data)

    @checked
    def test(self, *, split: Split = "test") -> EnsembleTest:
        """Scores on a split as the members stand, temperature, out-of-distribution tests."""
        check_split(split)
        model = self.predictive()
        logits, targets = self._outputs(model, self.data, "validation")
        check_members(logits, "validation")
        temperature = fit_temperature(logits, targets, pooling="pool_then_scale")
        report = self._report(model, split)
        check_members(report.members.accuracy, split)
        found: dict[str, OODScores] = {}
        if self.ood is not None:
            outside = uncertainty_scores(self._outputs(model, self.ood, "test")[0])
            draws = torch.Generator().manual_seed(0)
            found = {
                name: ood_scores(inside, outside[name], generator=draws)
                for name, inside in report.uncertainty.items()
            }
            if not isinstance(self.tracker, NullTracker):
                draw_uncertainty(self.tracker, self.step, report.uncertainty, outside, found)
        if not isinstance(self.tracker, NullTracker):
            swept = {n: v for n, v in self._own.items() if v and len(set(v)) > 1}
            draw_sweeps(self.tracker, self.step, swept, report)
        return EnsembleTest(split, report, temperature, found)

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool = True
    ) -> dict[str, EnsembleTest]:
        """See `Trainer.reports`: one `test`, under the name of the split."""
        return {split: self.test(split=split)}

    def member_settings(self) -> list[dict[str, float]]:
        """What was set for each member: its seed, and what was given as a list."""
        rows: list[dict[str, float]] = [{"seed": seed} for seed in self.seeds]
        for name, values in self._own.items():
            for row, value in zip(rows, values or []):
                row[name] = value
        return rows

    @checked
    def predict(self, inputs: Tensor) -> Tensor:
        """Logits of every member, ``[M, B, C]``, in evaluation mode."""
        return self._logits(self.predictive(), inputs)

    def extra_state(self) -> dict[str, Any]:
        """What is known of each member, and how gradients are taken."""
        state = super().extra_state() | {"history": self._history}
        if self.plan is not None:
            state["plan"] = {
                "engine": self.plan.engine,
                "chunk_size": self.plan.chunk_size,
                "memory": self.memory,
                "device": self.device.type,
            }
        return state

    def extra_kinds(self) -> list[Kind]:
        """With the history of validations and, where there is one, the plan."""
        rows = list_of(list_of(number(nan=True)))
        plan = mapping(
            {
                "engine": choice(*get_args(MemberEngine)),
                "chunk_size": maybe(whole(1)),
                "device": text,
            }
        )
        history = mapping(dict.fromkeys(self._history, rows))
        return [*super().extra_kinds(), mapping({"history": history}, {"plan": maybe(plan)})]

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `extra_state` gave."""
        super().load_extra_state(state)
        self._history = state["history"]
        set_dropout(self.ensemble, self.seeds, self._own["dropout"])  # the rates and seeds of now
        plan = state.get("plan")
        if (
            plan
            and plan["device"] == self.device.type
            and keeps(plan, engine=self.engine, chunk_size=self.chunk_size, memory=self.memory)
        ):
            note = ("as before the interruption",)
            self.plan = MemberPlan(plan["engine"], plan["chunk_size"], note)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[B, ...]`` and targets ``[B]``, or with M in front where members differ."""
        x, y = self.data.take(self.batches.indices(step), device=self.device)
        seeds = self.seeds if y.dim() == 2 else self.seeds[:1]
        return augment(x, self.augmentation, seeds=seeds, step=step), y

    def _gradients(
        self, batch: tuple[Tensor, Tensor], chosen: Tensor, engine: MemberEngine, chunk: int | None
    ) -> StepReport:
        self.ensemble.train()
        losses, grads = classification_gradients(
            self.ensemble,
            batch,
            chosen=chosen,
            smoothing=self._smoothing,
            engine=engine,
            chunk_size=chunk,
        )
        known = losses[chosen.to(self.device)]
        samples = len(known) * batch[1].shape[-1]
        return StepReport(known.mean(), grads, samples, lambda: "their batches", losses)

    def _settle(self) -> None:
        """Decide once how gradients are taken, and say so."""
        if self.plan is not None:
            return
        batch = self._batch(0)
        kept = {n: v.clone() for n, v in self.ensemble.named_buffers()}

        def attempt(engine: MemberEngine, members: int) -> object:
            self._stop.check()
            chosen = torch.arange(len(self.ensemble)) < members
            return self._gradients(batch, chosen, engine, None)

        fixed = self.settings.deterministic
        try:
            self.plan = plan_members(
                attempt,
                len(self.ensemble),
                engine=self.engine,
                chunk_size=self.chunk_size,
                memory=memory_budget(self.memory, self.device, deterministic=fixed),
                device=self.device,
                deterministic=fixed,
            )
        finally:
            for name, buffer in self.ensemble.named_buffers():  # trials wrote running statistics
                buffer.copy_(kept[name])
        log.info("%s", self.plan)

    def _report(self, model: Predictor, split: Split) -> EnsembleReport:
        predict = partial(self._logits, model)
        return report_of(predict, self.data, split, members=len(model), device=self.device)

    def _outputs(
        self, model: Predictor, data: ClassificationData, split: Split
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[M, N, C]`` and targets ``[N]`` of a split."""
        return logits_of(partial(self._logits, model), data, split, device=self.device)

    @torch.no_grad()
    def _logits(self, model: Predictor, inputs: Tensor) -> Tensor:
        self._stop.check()
        given: MemberEngine = "loop" if self.engine == "loop" else "batched"
        by = partial(model.eval(), engine=self.plan.engine if self.plan else given)
        looped = partial(model, engine="loop")
        undecided = self.plan is None and self.engine == "auto"
        run = partial(vmapped_or_looped, by, looped) if undecided else by
        check_tensors(inputs, "inputs")
        with module_takes("inputs", inputs):
            logits: Tensor = run(inputs.to(self.device))
        return logits

    def _note(self, members: Mapping[str, Tensor]) -> None:
        """Remember a validation for the bands over training."""
        self._history["step"].append([float(self.step)])
        for name, values in members.items():
            self._history[name].append(values.tolist())

    def _check_outputs(self) -> None:
        """Run a few samples through the members before any training."""
        name, shape = type(self.ensemble.member(0)).__name__, list(self.data.input_shape)
        x, _ = self.data.take(self.data.splits["train"][:2], device=self.device)
        try:
            got = list(self._logits(self.validated(), x).shape)
        except VectorizationError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise SettingError(
                "model", name, f"inputs {shape} are what it gets ({reason})"
            ) from error
        wanted = [len(self.validated()), 2, self.data.outputs]
        if got != wanted:
            raise SettingError("model", name, f"outputs {wanted} are needed, not {got}")
        if self.ood is not None and self.ood.input_shape != self.data.input_shape:
            raise SettingError("ood", list(self.ood.input_shape), f"inputs {shape} are needed")


def _check_choices(**given: str) -> None:
    known = {"monitor": Monitor, "engine": Engine, "shuffle": Shuffle}
    for name, value in given.items():
        kinds = get_args(known[name])
        if value not in kinds:
            raise SettingError(name, value, f"one of {', '.join(kinds)} is needed")
