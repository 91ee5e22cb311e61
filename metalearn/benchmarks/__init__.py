"""What this package does, timed against the arithmetic floor and against other libraries."""

from metalearn.benchmarks.contestants import CONTESTANTS, Contestant, available
from metalearn.benchmarks.measure import Timing, curve, race
from metalearn.benchmarks.report import curve_figure, race_figure, race_table
from metalearn.benchmarks.suites import SUITES, SuiteResult
from metalearn.benchmarks.workloads import WORKLOADS, Workload

__all__ = [
    "CONTESTANTS",
    "SUITES",
    "WORKLOADS",
    "Contestant",
    "SuiteResult",
    "Timing",
    "Workload",
    "available",
    "curve",
    "curve_figure",
    "race",
    "race_figure",
    "race_table",
]
