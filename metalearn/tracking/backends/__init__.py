"""Where a run's records go beside its own lines: one file for each place, by name.

Axes: none; a step is one outer (meta) step, counted from 0 over all resumptions.
"""

from metalearn.tracking.backends.backend import RunFacts, TrackerBackend
from metalearn.tracking.backends.registry import (
    BACKENDS,
    DEFAULT_TRACKER,
    backends_of,
    check_backends,
    names_of,
    watched,
)

__all__ = [
    "BACKENDS",
    "DEFAULT_TRACKER",
    "RunFacts",
    "TrackerBackend",
    "backends_of",
    "check_backends",
    "names_of",
    "watched",
]
