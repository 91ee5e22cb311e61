"""What a run shows of its gradients while it trains, and of its curvature when it is finished.

Every trainer takes diagnostics by name (``trainer.diagnostics``); ``diagnose`` computes the same
ones, and more, of a finished run (``what``).
"""

from metalearn.trainers.diagnostics.offline import (
    PLACES,
    Diagnosis,
    DiagnosisData,
    ModelSource,
    UnitSource,
    diagnose,
    record_diagnosis,
)
from metalearn.trainers.diagnostics.protocol import (
    Diagnostic,
    DiagnosticSource,
    GradientDiagnostic,
    GradientUnits,
    ModelDiagnostic,
    PredictiveModels,
)
from metalearn.trainers.diagnostics.registry import (
    DIAGNOSTICS,
    check_diagnostics,
    describe_diagnostics,
    offline_diagnostics,
    register_diagnostic,
    training_diagnostics,
)
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.runner import DiagnosticRunner
from metalearn.trainers.diagnostics.sample_gradients import (
    batch_dependence,
    sample_blocks,
    within_budget,
)
from metalearn.trainers.diagnostics.settings import CurvatureSettings

__all__ = [
    "DIAGNOSTICS",
    "PLACES",
    "CurvatureSettings",
    "Diagnosis",
    "DiagnosisData",
    "Diagnostic",
    "DiagnosticResult",
    "DiagnosticRunner",
    "DiagnosticSource",
    "GradientDiagnostic",
    "GradientUnits",
    "ModelDiagnostic",
    "ModelSource",
    "PredictiveModels",
    "UnitSource",
    "batch_dependence",
    "check_diagnostics",
    "describe_diagnostics",
    "diagnose",
    "offline_diagnostics",
    "record_diagnosis",
    "register_diagnostic",
    "sample_blocks",
    "training_diagnostics",
    "within_budget",
]
