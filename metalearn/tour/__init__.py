"""A walk through the mathematics: everything is computed in two ways or more, and must agree."""

from metalearn.errors import DisagreementError
from metalearn.tour.chapters import chapters, choose, walk
from metalearn.tour.stops import (
    Chapter,
    ScalarEngine,
    Stop,
    Way,
    Ways,
    check,
    stop,
)

__all__ = [
    "Chapter",
    "DisagreementError",
    "ScalarEngine",
    "Stop",
    "Way",
    "Ways",
    "chapters",
    "check",
    "choose",
    "stop",
    "walk",
]
