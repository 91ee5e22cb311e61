"""Diagnostics of finished runs: the same ones as in a training, of given models on given data.

Axes: G models (members, tasks), N samples of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.core.tree import leaf_names, leaves
from metalearn.near_names import check_known
from metalearn.percent import decimals
from metalearn.ranks import Ranks
from metalearn.tracking import Tracker, table_figure
from metalearn.trainers.diagnostics.measuring import measure
from metalearn.trainers.diagnostics.models import map_models, mean_loss
from metalearn.trainers.diagnostics.protocol import (
    Diagnostic,
    DiagnosticSource,
    GradientUnits,
    PredictiveModels,
    spelled_out,
)
from metalearn.trainers.diagnostics.registry import offline_diagnostics
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.sample_gradients import batch_dependence, sample_blocks
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Batch, Params, Split

__all__ = [
    "Diagnosis",
    "DiagnosisData",
    "ModelSource",
    "UnitSource",
    "diagnose",
    "diagnose_by_ranks",
    "record_diagnosis",
]

PLACES = ("initial", "adapted")
"""Parameters of a meta-learner that can be looked at."""


@dataclass(frozen=True)
class DiagnosisData:
    """Which models of a finished run are looked at, and on what."""

    run: str
    """What messages call the run."""
    split: Split = "validation"
    samples: int = 256
    """Of labelled data."""
    tasks: int = 16
    """Of a meta-learner."""
    places: Sequence[str] = ("initial",)
    """Of `PLACES`: parameters of a meta-learner."""
    inner_steps: int | None = None
    """Of adaptation; None takes as many as an evaluation."""
    models_at_once: int | None = None
    """Members or tasks in one vmap; None takes all."""


@dataclass
class Diagnosis:
    """What has been found of a finished run."""

    findings: dict[str, dict[str, DiagnosticResult]] = field(default_factory=dict)
    """By what was looked at (``"members"``, ``"initial"``, …) and name in ``what``."""
    left_out: dict[str, str] = field(default_factory=dict)
    """``"<what>/<name>"`` to the reason."""


@dataclass(frozen=True)
class ModelSource:
    """G models at once: gradients of their samples, of the models, what they predict.

    Attributes:
        models: what is looked at.
        module: which they are parameters of, in the mode it is looked at.
        models_at_once: of an outer vmap; None takes all.
    """

    models: PredictiveModels
    module: nn.Module
    models_at_once: int | None = None

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """Samples, models (as members) where there are several, predictions, mean losses.

        Fisher matrices are of predictions, and need a likelihood.
        """
        several = len(leaves(self.models.batch)[0]) > 1
        alone = "" if several else "a single model has no others to be compared with"
        mixed = batch_dependence(self.module)
        own = "" if self.models.likelihood else "no likelihood is known of a loss of one's own"
        return {"sample": mixed, "member": alone, "predictive": mixed or own, "loss": ""}

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """Gradients of the loss: of each sample of each model, or their means of each model."""
        models = self.models
        params, extra, data = models.params, models.extra, models.batch
        if kind == "sample":
            count = int(leaves(data)[0].shape[1])
            blocks = partial(sample_blocks, partial(mean_loss, models), params, extra, data)
            return GradientUnits("sample", blocks, count)
        means = map_models(_mean_gradient, [models], self.models_at_once)
        chunk = dict(zip(leaf_names(means), (grad[None] for grad in leaves(means))))
        return GradientUnits("member", lambda: [[chunk]], len(leaves(means)[0]))

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """The models."""
        yield self.models


@dataclass(frozen=True)
class UnitSource:
    """Gradients of one kind of unit, such as the meta-gradients of tasks."""

    units: GradientUnits

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """The one kind."""
        return {self.units.kind: ""}

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """The units."""
        return self.units

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """None."""
        return iter(())


def diagnose(
    sources: Iterable[tuple[str, DiagnosticSource]],
    names: Sequence[str],
    settings: CurvatureSettings | None = None,
) -> Diagnosis:
    """Quantities of a finished run, of each source those that it has something for.

    Args:
        sources: what is looked at, by name, one after another; see ``diagnosis_sources`` of
            trainers.
        names: in ``what``, see `offline_diagnostics`.
        settings: of curvature.

    Raises:
        SettingError: an unknown quantity.
    """
    known = offline_diagnostics()
    for name in names:
        check_known("what", name, known)
    diagnosis, nowhere = Diagnosis(), list(names)
    for place, source in sources:
        reasons = source.diagnostic_kinds()
        wanted = {name: _first(known[name].kinds, reasons) for name in names}
        had = {name: kind for name, kind in wanted.items() if kind is not None}
        if had:
            possible = {name: kind for name, kind in had.items() if not reasons[kind]}
            left_out = {f"{place}/{n}": reasons[k] for n, k in had.items() if reasons[k]}
            diagnosis.findings[place] = _measured(source, possible, settings)
            diagnosis.left_out |= left_out
            nowhere = [name for name in nowhere if name not in had]
    for name in nowhere:
        diagnosis.left_out[name] = f"this run has no {spelled_out(known[name].kinds)}"
    return diagnosis


def diagnose_by_ranks(
    sources: Callable[[], Iterable[tuple[str, DiagnosticSource]]],
    names: Sequence[str],
    settings: CurvatureSettings | None,
    ranks: Ranks,
) -> Diagnosis:
    """What `diagnose` finds, each rank looking for some of the quantities; all have all of it.

    Args:
        sources: makes them, for each rank.
        names: as of `diagnose`.
        settings: as of `diagnose`.
        ranks: that share the work.
    """
    places: list[str] = []

    def noted() -> Iterator[tuple[str, DiagnosticSource]]:
        for place, source in sources():
            places.append(place)
            yield place, source

    own = diagnose(noted(), list(names)[ranks.rank :: ranks.count], settings)
    findings = {
        place: {name: vars(result) for name, result in found.items()}
        for place, found in own.findings.items()
    }
    every: dict[str, dict[str, DiagnosticResult]] = {}
    reasons: dict[str, str] = {}
    ranks.gather()
    for told, left_out in ranks.of_each([findings, own.left_out]):
        reasons |= left_out
        for place, found in told.items():
            results = {name: DiagnosticResult(**fields) for name, fields in found.items()}
            every.setdefault(place, {}).update(results)
    # in the order of one process
    whole = Diagnosis()
    for place in [place for place in places if place in every]:
        whole.findings[place] = {name: every[place][name] for name in names if name in every[place]}
    where = [*(f"{place}/{name}" for place in places for name in names), *names]
    whole.left_out = {name: reasons[name] for name in where if name in reasons}
    return whole


def record_diagnosis(tracker: Tracker, step: int, split: str, diagnosis: Diagnosis) -> None:
    """Numbers, a table of them, histograms and figures, as ``diagnosis_<split>/<what>/<name>``."""
    known, rows = offline_diagnostics(), []
    for place, found in diagnosis.findings.items():
        prefix, of = f"diagnosis_{split}/{place}", f"{place}, {split}, step {step}"
        for name, result in found.items():
            medians = {k: float(v.median()) for k, v in result.rows().items()}
            tracker.scalars(step, {f"{prefix}/{name}/{k}": v for k, v in medians.items()})
            rows += [_row(place, name, k, values) for k, values in result.rows().items()]
            if result.distribution is not None:
                tracker.histograms(step, prefix, {name: result.distribution})
            for part, figure in known[name]().figures(result, of).items():
                tracker.figure(step, f"{prefix}/{name}" + (f"/{part}" if part else ""), figure)
    if rows:
        heads = ("of", "what", "median", "lowest", "highest")
        title = f"diagnosis of the {split} split, step {step}"
        tracker.figure(step, f"diagnosis_{split}/table", table_figure(heads, rows, title=title))


def _row(place: str, quantity: str, name: str, values: Tensor) -> list[str]:
    """Of a table: median and extremes, these where there are several."""
    shown = [decimals(float(end)) for end in (values.median(), values.min(), values.max())]
    if values.numel() == 1:
        shown[1:] = ["", ""]
    return [place, f"{quantity}: {name}".replace("_", " "), *shown]


def _first(kinds: Sequence[str], offered: Mapping[str, str]) -> str | None:
    return next((kind for kind in kinds if kind in offered), None)


def _measured(
    source: DiagnosticSource, kinds: Mapping[str, str], settings: CurvatureSettings | None
) -> dict[str, DiagnosticResult]:
    """Results by name in ``what``, each of one kind of what the source has."""
    known = offline_diagnostics()
    made = {name: known[name]() for name in kinds}
    asked: dict[Diagnostic, tuple[str, ...]] = {made[n]: (kind,) for n, kind in kinds.items()}
    found = measure(asked, source, None, {}, settings=settings).results
    return {name: found[made[name].name][kind] for name, kind in kinds.items()}


def _mean_gradient(models: PredictiveModels, params: Params, extra: Any, batch: Batch) -> Params:
    """The gradient of one model's mean loss."""
    grads: Params = torch.func.grad(mean_loss(models, extra))(params, batch)
    return grads
