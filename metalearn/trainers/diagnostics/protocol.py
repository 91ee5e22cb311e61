"""What a diagnostic asks of a trainer (or of a finished run), and what these ask of a diagnostic.

A diagnostic is written once: from gradients of *units* (samples, shots, tasks, members), or from
models, comes a `DiagnosticResult`; what a training records of it, what ``diagnose`` writes and the
figures of both are read off that. Units come in G populations that are not mixed (shots in tasks,
samples in members), and a few at a time.

Axes: G populations or models, n units of a chunk, N units of a population.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from matplotlib.figure import Figure
from torch import Tensor

from metalearn.core import Reduction
from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.curvature.likelihood import FisherKind, Likelihood, LikelihoodName
from metalearn.reprs import one_line
from metalearn.schema import Kind, mapping
from metalearn.tracking import Tracker
from metalearn.trainers.diagnostics.result import DiagnosticResult, layer_figures
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Batch, Params

__all__ = [
    "Diagnostic",
    "DiagnosticSource",
    "GradientChunk",
    "GradientDiagnostic",
    "GradientUnits",
    "ModelDiagnostic",
    "PredictiveModels",
    "spelled_out",
]

_NEWEST = "_newest_layers"

GradientChunk = Mapping[str, Tensor]
"""Gradients of n units of G populations by the name of the parameter, leaves ``[G, n, ...]``."""


@dataclass(frozen=True)
class GradientUnits:
    """Gradients of all units of one kind at one step, computed when they are asked for."""

    kind: str
    """``"sample"``, ``"shot"``, ``"task"`` or ``"member"``."""
    blocks: Callable[[], Iterable[Iterable[GradientChunk]]]
    """Blocks of populations, each in chunks of units."""
    count: int
    """N, units of one population: what a step's gradient (of a task, a member) is the mean of."""
    clip_norm: float = math.inf
    """Norm beyond which a gradient is clipped."""
    labels: Sequence[str] | None = None
    """Of the N units; None numbers them."""


@dataclass(frozen=True)
class PredictiveModels:
    """G models and what each is shown: what Fisher matrices and curvature are taken of."""

    outputs_fn: Callable[[Any], OutputsFn]
    """From a model's ``extra`` to its outputs ``[N, C]`` of parameters and inputs."""
    params: Params
    """Leaves ``[G, ...]``."""
    extra: Any
    """Leaves ``[G, ...]``: buffers; may be empty."""
    batch: Batch
    """``(inputs, targets)``, leaves ``[G, N, ...]``."""
    likelihood: LikelihoodName | None
    """Whose −log p is the training loss up to constants; None of a loss that is no such thing."""
    variance: float = 1.0
    """σ² of a gaussian likelihood."""
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None
    """Mean loss of outputs and targets, where there is no likelihood."""

    def fisher_rule(self, kind: FisherKind) -> Likelihood:
        """What a Fisher matrix of these models is taken of.

        Raises:
            SettingError: there is no likelihood.
        """
        return Likelihood(self.likelihood, kind, variance=self.variance)  # type: ignore[arg-type]


class DiagnosticSource(Protocol):
    """What a trainer, or a finished run, offers; nothing of it changes what is looked at."""

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """What there is, to why it cannot be had; ``""`` where it can.

        Kinds of units; ``"predictive"`` for models whose samples have outputs of their own, and
        ``"loss"`` for models of which the mean loss of a batch is all that is needed.
        """

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """Units of a kind in a step's batch, the step's gradient being ``grads`` by parameter."""

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """Models with the data of a step's batch."""


class Diagnostic(ABC):
    """One thing to know about a training, or about a finished run.

    Subclasses are `GradientDiagnostic` and `ModelDiagnostic`; what they have in common is how a
    training remembers and shows their results.

    Attributes:
        name: as in ``trainer.diagnostics``.
        offline_name: as in ``what`` of ``diagnose``, where that is another.
        kinds: what it can look at, see `DiagnosticSource.diagnostic_kinds`. A training shows all
            of these that it has, ``diagnose`` of each set of models the first that these have.
        in_training: whether a training can show it; ``diagnose`` can in any case.
        settings: those of `CurvatureSettings` that it needs and not every one does.
        title: begins the titles of figures; the name where it is empty.
        reading: what its numbers mean and which of them would be alarming, for a page.
    """

    name: ClassVar[str]
    offline_name: ClassVar[str] = ""
    kinds: ClassVar[tuple[str, ...]]
    in_training: ClassVar[bool] = True
    settings: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str] = ""
    reading: ClassVar[str] = ""

    def __repr__(self) -> str:
        return one_line(self, self.name)

    def record(
        self, step: int, kind: str, result: DiagnosticResult, tracker: Tracker
    ) -> Mapping[str, float]:
        """Scalars of a look at a training step; here every value, and curves and a histogram.

        Values are ``<name>/<kind>_<value>``, without the kind where it is one of models. Of a
        value with several numbers the mean, and ``_low`` and ``_high``, are scalars.

        Args:
            step: of the training, counted from 0.
            kind: of what was looked at.
            result: what was found.
            tracker: for histograms and curves, recorded at ``step + 1`` as all numbers of a step.
        """
        prefix = self.prefix(kind)
        self.seen_layers(step, kind, result)
        for name, layers in result.layers.items():
            tracker.curves(step + 1, f"{prefix}{name}_by_layer", layers)
        if result.distribution is not None and len(result.distribution):
            tracker.histograms(step + 1, self.name, {kind: result.distribution})
        return {prefix + name: value for name, value in result.scalars().items()}

    def prefix(self, kind: str) -> str:
        """Begins the names of what a training records."""
        return f"{self.name}/{kind}_"

    def draw(self, step: int, tracker: Tracker) -> None:
        """Figures of what a training knows so far, at a validation after ``step`` steps.

        Here those of the newest numbers of layers.
        """
        for kind, (when, result) in vars(self).pop(_NEWEST, {}).items():
            for name, figure in layer_figures(result, f"{kind}s, step {when}").items():
                tracker.figure(step, f"{self.name}/{kind}_{name}_by_layer", figure)

    def seen_layers(self, step: int, kind: str, result: DiagnosticResult) -> None:
        """Remember a look at layers until the next `draw`."""
        if result.layers:
            vars(self).setdefault(_NEWEST, {})[kind] = (step + 1, result)

    def figures(self, result: DiagnosticResult, of: str) -> Mapping[str, Figure]:
        """Figures of one result, by the end of their names; here a bar for each layer.

        Args:
            result: what was found.
            of: ends the titles: which models, data and step.
        """
        return layer_figures(result, f"{self.title or self.name}, {of}")

    def state(self) -> dict[str, Any]:
        """What a training has to remember, plain or tensors."""
        return {}

    def state_kind(self) -> Kind:
        """What `state` has to be in a checkpoint."""
        return mapping({})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        return


class GradientDiagnostic(Diagnostic):
    """A diagnostic of gradients.

    Attributes:
        reduction: what is kept of the gradients of one population, seen chunk by chunk; written
            for one population, see `metalearn.core.Reduction`. Diagnostics that have the same one
            share its pass.
    """

    reduction: ClassVar[Reduction]

    @abstractmethod
    def result(self, reduced: Any, units: GradientUnits) -> DiagnosticResult:
        """What the reduction of all gradients says.

        Args:
            reduced: what the reduction's ``finish`` gave, leaves ``[G, ...]`` of all populations.
            units: whose gradients they were.
        """


class ModelDiagnostic(Diagnostic):
    """A diagnostic of models and the data they are shown."""

    kinds = ("predictive",)

    def prefix(self, kind: str) -> str:
        """Begins the names of what a training records: there is one kind of models."""
        return f"{self.name}/"

    @abstractmethod
    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        """What is to be known of the models, one after another where there are several sets."""


_IN_WORDS = {
    "sample": "gradients of single samples",
    "shot": "gradients of single shots",
    "task": "gradients of tasks",
    "member": "members",
    "predictive": "models that predict from their parameters alone",
    "loss": "models with a loss of their parameters alone",
}


def spelled_out(kinds: Sequence[str]) -> str:
    """What messages call kinds of `DiagnosticSource.diagnostic_kinds`, one or the other."""
    return " or ".join(_IN_WORDS.get(kind, kind) for kind in kinds)
