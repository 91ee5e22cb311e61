"""The one place in which diagnostics are computed: for a step of a training, for a finished run.

Axes: none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.stretches import stretch
from metalearn.trainers.diagnostics.protocol import (
    Diagnostic,
    DiagnosticSource,
    GradientDiagnostic,
    GradientUnits,
    ModelDiagnostic,
    PredictiveModels,
)
from metalearn.trainers.diagnostics.reducing import reduce_units
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Params

__all__ = ["Measured", "measure"]


@dataclass
class Measured:
    """What diagnostics have found, and what it took."""

    results: dict[str, dict[str, DiagnosticResult]]
    """By name of the diagnostic, and by kind of what it looked at."""
    seconds: dict[str, float]
    """By name; what several share is counted in equal parts to each."""


def measure(
    wanted: Mapping[Diagnostic, tuple[str, ...]],
    source: DiagnosticSource,
    batch: Any,
    grads: Mapping[str, Tensor],
    *,
    settings: CurvatureSettings | None = None,
    check: Callable[[], None] = lambda: None,
) -> Measured:
    """Results of diagnostics.

    All that look at units of one kind share one pass over their gradients.

    Args:
        wanted: diagnostics, and the kinds each is to look at, which the source has.
        source: a trainer, or a finished run.
        batch: of the step, handed to the source.
        grads: of the step, by parameter, handed to the source.
        settings: of curvature.
        check: called between chunks of gradients and whenever a model predicts; what it raises
            ends the measurement.

    Returns:
        Results; of an empty batch (or of no active member) there are none.
    """
    found = Measured({d.name: {} for d in wanted}, {d.name: 0.0 for d in wanted})
    gradients: dict[str, list[GradientDiagnostic]] = {}
    of_models = [d for d in wanted if isinstance(d, ModelDiagnostic)]
    for diagnostic, kinds in wanted.items():
        if isinstance(diagnostic, GradientDiagnostic):
            for kind in kinds:
                gradients.setdefault(kind, []).append(diagnostic)
    total = sum(map(len, gradients.values())) + len(of_models)
    with stretch("diagnostics", total, "quantities") as tell:
        for kind, users in gradients.items():
            started = time.monotonic()
            units = source.gradient_units(kind, batch, grads)
            if units.count:  # of an empty batch there is nothing to say
                _reduce(found, kind, units, users, started, check)
            tell(len(users))
        if of_models:
            started = time.monotonic()
            every = source.predictive_models(batch)
            models = [_checked(m, check) for m in every if _has_samples(m)]
            of_models = of_models if models else []
            _share(found, of_models, started)
        for diagnostic in of_models:
            started = time.monotonic()
            result = diagnostic.result(models, settings or CurvatureSettings())
            found.results[diagnostic.name][wanted[diagnostic][0]] = _result(diagnostic, result)
            _share(found, [diagnostic], started)
            tell(1)
    return found


def _reduce(
    found: Measured,
    kind: str,
    units: GradientUnits,
    users: Sequence[GradientDiagnostic],
    started: float,
    check: Callable[[], None],
) -> None:
    """What some diagnostics make of one pass over the gradients of units of one kind."""
    reduced = reduce_units(units, {d.reduction for d in users}, check=check)
    _share(found, users, started)
    for user in users:
        started = time.monotonic()
        result = user.result(reduced[user.reduction], units)
        found.results[user.name][kind] = _result(user, result)
        _share(found, [user], started)


def _result(diagnostic: Diagnostic, found: Any) -> DiagnosticResult:
    """What a diagnostic gave, which has to be what all give."""
    if not isinstance(found, DiagnosticResult):
        setting = f"{type(diagnostic).__name__}.result"
        raise SettingError(setting, type(found).__name__, "a DiagnosticResult is needed")
    return found


def _share(found: Measured, users: Sequence[Diagnostic], started: float) -> None:
    spent = time.monotonic() - started
    for user in users:
        found.seconds[user.name] += spent / len(users)


def _has_samples(models: PredictiveModels) -> bool:
    return all(leaves(models.batch)[0].shape[:2])


def _checked(models: PredictiveModels, check: Callable[[], None]) -> PredictiveModels:
    """The same models, which call ``check`` whenever they predict."""

    def outputs_fn(extra: Any) -> OutputsFn:
        outputs = models.outputs_fn(extra)

        def checked(params: Params, inputs: Any) -> Tensor:
            check()
            return outputs(params, inputs)

        return checked

    return replace(models, outputs_fn=outputs_fn)
