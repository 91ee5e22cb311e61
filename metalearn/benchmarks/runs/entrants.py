"""Who takes part in a race, and what a race is: plain data, from which processes are started."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Entrant", "Package", "Race"]


@dataclass(frozen=True)
class Package:
    """Another library."""

    module: str
    """Its import name."""
    install: str
    """The command that installs it."""

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module) is not None


@dataclass(frozen=True)
class Entrant:
    """A way to one quantity."""

    title: str
    prepare: Callable[[Any], Callable[[], Tensor]]
    """From a problem to what is timed, which gives ``[R, ...]``: a row for each loss or target."""
    beside: str
    """The entrant whose time is the measure of this one's."""
    needs: Package | None = None
    takes: Callable[[Any], bool] = field(default=lambda problem: True)
    """Whether it can solve a problem, such as many losses at once."""
    limit: str = ""
    """Why it does not take the others."""
    timed: bool = True
    """False: it gives the result that others are held against."""

    def absent(self) -> str:
        """Why it is not here; empty where it is."""
        if self.needs is None or self.needs.installed:
            return ""
        return f"not installed ({self.needs.install})"


@dataclass(frozen=True)
class Race:
    """Entrants, and the problems that they are given."""

    problem: Callable[..., Any]
    """Makes one from numbers."""
    entrants: Mapping[str, Entrant]
    tiny: Mapping[str, Any]
    """Numbers of a problem that is over in an instant, by which a process loads what it needs."""
