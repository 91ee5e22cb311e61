"""All diagnostics: what ``trainer.diagnostics`` and ``what`` of ``diagnose`` can name.

A new one is a file like those imported here, and its class in the table. Axes: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from metalearn.core import Reduction
from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.trainers.diagnostics.curvature_traces import CurvatureTraces
from metalearn.trainers.diagnostics.eigenvalues import Eigenvalues
from metalearn.trainers.diagnostics.fisher import Fisher
from metalearn.trainers.diagnostics.fisher_trace import FisherTrace
from metalearn.trainers.diagnostics.gradient_cosines import GradientCosines
from metalearn.trainers.diagnostics.gradient_norms import GradientNorms
from metalearn.trainers.diagnostics.gradient_variance import GradientVariance
from metalearn.trainers.diagnostics.noise_scale import NoiseScales
from metalearn.trainers.diagnostics.protocol import (
    Diagnostic,
    GradientDiagnostic,
    ModelDiagnostic,
)
from metalearn.trainers.diagnostics.spectral_density import SpectralDensity

__all__ = [
    "DIAGNOSTICS",
    "check_diagnostics",
    "describe_diagnostics",
    "offline_diagnostics",
    "register_diagnostic",
    "training_diagnostics",
]

D = TypeVar("D", bound=type[Diagnostic])

DIAGNOSTICS: dict[str, type[Diagnostic]] = {
    kind.name: kind
    for kind in (
        GradientNorms,
        GradientVariance,
        NoiseScales,
        GradientCosines,
        FisherTrace,
        Fisher,
        Eigenvalues,
        SpectralDensity,
        CurvatureTraces,
    )
}
"""All that are known, by name."""


def register_diagnostic(kind: D) -> D:
    """Make a further diagnostic known, to trainings and to ``diagnose``: a class decorator.

    Raises:
        SettingError: a class that is no diagnostic or says too little, a name that another has.
    """
    if not (isinstance(kind, type) and issubclass(kind, GradientDiagnostic | ModelDiagnostic)):
        accepted = "a subclass of GradientDiagnostic or ModelDiagnostic is needed"
        raise SettingError("diagnostic", kind, accepted)
    needed = ("name", "kinds", *(("reduction",) if issubclass(kind, GradientDiagnostic) else ()))
    for attribute in needed:
        if not getattr(kind, attribute, None):
            raise SettingError("diagnostic", kind.__name__, f"its class needs {attribute} = ...")
    _check_attributes(kind)
    others = [known for known in DIAGNOSTICS.values() if known.__qualname__ != kind.__qualname__]
    taken = {name for known in others for name in (known.name, _offline_name(known))}
    for name in (kind.name, _offline_name(kind)):
        if name in taken:
            raise SettingError("diagnostic", name, "a name that no other diagnostic has is needed")
    DIAGNOSTICS[kind.name] = kind
    return kind


def _check_attributes(kind: type[Diagnostic]) -> None:
    """Refuse what a class says of itself where nothing could be done with it."""
    for attribute in ("name", "offline_name"):
        name = getattr(kind, attribute)
        if name and not (isinstance(name, str) and name.isidentifier()):
            accepted = "letters, digits and underscores are needed, as in a setting"
            raise SettingError(f"{kind.__name__}.{attribute}", name, accepted)
    every = {known for other in DIAGNOSTICS.values() for known in other.kinds}
    if not isinstance(kind.kinds, tuple | list) or not set(kind.kinds) <= every:
        accepted = f"a tuple of some of {', '.join(sorted(every))} is needed"
        raise SettingError(f"{kind.__name__}.kinds", kind.kinds, accepted)
    if issubclass(kind, GradientDiagnostic) and not isinstance(kind.reduction, Reduction):
        accepted = "a Reduction(init, update, finish) is needed"
        raise SettingError(f"{kind.__name__}.reduction", kind.reduction, accepted)


def training_diagnostics() -> dict[str, type[Diagnostic]]:
    """Those that a training can show, by their names in ``trainer.diagnostics``."""
    return {name: kind for name, kind in DIAGNOSTICS.items() if kind.in_training}


def offline_diagnostics() -> dict[str, type[Diagnostic]]:
    """Those that ``diagnose`` computes of a finished run, by their names in ``what``."""
    return {_offline_name(kind): kind for kind in DIAGNOSTICS.values()}


def describe_diagnostics(known: dict[str, type[Diagnostic]]) -> str:
    """A line for each: its name, and the first line of what its class says of itself."""
    width = max(map(len, known), default=0)
    first = {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in known.items()}
    return "\n".join(f"{name:<{width}}  {line}".rstrip() for name, line in first.items())


def check_diagnostics(names: Sequence[str]) -> None:
    """Refuse names that a training does not know, and repeated ones.

    Raises:
        SettingError: names them, and those that are known.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise SettingError("diagnostics", names, "a list of names is needed")
    for name in names:
        check_known("diagnostics", name, training_diagnostics())
    if len(set(names)) < len(names):
        raise SettingError("diagnostics", list(names), "each name once is accepted")


def _offline_name(kind: type[Diagnostic]) -> str:
    return kind.offline_name or kind.name
