"""All races, by name."""

from __future__ import annotations

from metalearn.benchmarks.runs.attribution_race import ATTRIBUTION
from metalearn.benchmarks.runs.entrants import Race
from metalearn.benchmarks.runs.hypergradients import HYPER
from metalearn.benchmarks.runs.implicit import IMPLICIT

__all__ = ["RACES"]

RACES: dict[str, Race] = {"hyper": HYPER, "implicit": IMPLICIT, "attribution": ATTRIBUTION}
