"""How good predictions and their uncertainties are: scores, calibration, out-of-distribution tests.

Axes: M members, N samples, C classes.
"""

from metalearn.evaluation.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_bins,
)
from metalearn.evaluation.conformal import (
    ConformalPredictor,
    ConformalRule,
    SetScores,
    fit_conformal,
    set_scores,
)
from metalearn.evaluation.confusions import Confusion, ConfusionCounts
from metalearn.evaluation.out_of_distribution import OODScores, ood_scores, uncertainty_scores
from metalearn.evaluation.regression import (
    RegressionReport,
    RegressionScores,
    RegressionStatistics,
)
from metalearn.evaluation.risk_coverage import (
    RiskCoverage,
    area_under_risk_coverage,
    risk_coverage,
)
from metalearn.evaluation.statistics import EnsembleReport, EnsembleStatistics, Scores
from metalearn.evaluation.temperature import (
    Temperature,
    fit_temperature,
    tempered_log_probabilities,
)

__all__ = [
    "ConformalPredictor",
    "ConformalRule",
    "Confusion",
    "ConfusionCounts",
    "EnsembleReport",
    "EnsembleStatistics",
    "OODScores",
    "RegressionReport",
    "RegressionScores",
    "RegressionStatistics",
    "ReliabilityBins",
    "RiskCoverage",
    "Scores",
    "SetScores",
    "Temperature",
    "adaptive_calibration_error",
    "area_under_risk_coverage",
    "expected_calibration_error",
    "fit_conformal",
    "fit_temperature",
    "ood_scores",
    "reliability_bins",
    "risk_coverage",
    "set_scores",
    "tempered_log_probabilities",
    "uncertainty_scores",
]
