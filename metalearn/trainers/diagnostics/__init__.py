"""What a run shows of its gradients while it trains; every trainer takes them by name."""

from metalearn.trainers.diagnostics.protocol import Diagnostic, Eye, Predictive, Units, Watched
from metalearn.trainers.diagnostics.watch import DIAGNOSTICS, Watch, check_diagnostics, register

__all__ = [
    "DIAGNOSTICS",
    "Diagnostic",
    "Eye",
    "Predictive",
    "Units",
    "Watch",
    "Watched",
    "check_diagnostics",
    "register",
]
