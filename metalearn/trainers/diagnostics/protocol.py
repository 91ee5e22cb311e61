"""What a diagnostic asks of a trainer, and what a training asks of a diagnostic.

A diagnostic looks at gradients of *units*: samples, shots (support samples), tasks or members.
They come in G populations that are not mixed (shots in tasks, samples in members), and a few at a
time.

Axes: G populations of a block, n units of a chunk, N units of a population.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.curvature.likelihood import LikelihoodName
from metalearn.schema import Kind, mapping
from metalearn.tracking import Tracker
from metalearn.types import Batch, Params

__all__ = ["Chunk", "Diagnostic", "Eye", "Predictive", "Units", "Watched"]

Chunk = Mapping[str, Tensor]
"""Gradients of n units of G populations by the name of the parameter, leaves ``[G, n, ...]``."""


@dataclass(frozen=True)
class Units:
    """Gradients of all units of one kind at one step, computed when they are asked for."""

    kind: str
    """``"sample"``, ``"shot"``, ``"task"`` or ``"member"``."""
    blocks: Callable[[], Iterable[Iterable[Chunk]]]
    """Blocks of populations, each in chunks of units."""
    count: int
    """N, units of one population: what a step's gradient (of a task, a member) is the mean of."""
    limit: float = math.inf
    """Norm beyond which a gradient is clipped."""
    labels: Sequence[str] | None = None
    """Of the N units; None numbers them."""


@dataclass(frozen=True)
class Predictive:
    """G models and what each is shown: what Fisher matrices are taken of."""

    outputs_fn: Callable[[Any], OutputsFn]
    """From a population's ``extra`` to its outputs ``[N, C]`` of parameters and inputs."""
    params: Params
    """Leaves ``[G, ...]``."""
    extra: Any
    """Leaves ``[G, ...]``: buffers; may be empty."""
    batch: Batch
    """``(inputs, targets)``, leaves ``[G, N, ...]``."""
    likelihood: LikelihoodName
    variance: float = 1.0
    """σ² of a gaussian likelihood whose −log p is the training loss up to constants."""


class Watched(Protocol):
    """What a trainer offers; all of it is a function of the step and changes nothing."""

    def watchable(self) -> Mapping[str, str]:
        """Each kind of unit, and ``"predictive"``, to why it cannot be had; ``""`` where it can."""

    def units(self, kind: str, step: int, grads: Mapping[str, Tensor]) -> Units:
        """Units of a kind at a training step whose gradients, by parameter, are ``grads``."""

    def watched_models(self, step: int) -> Iterator[Predictive]:
        """Models with the data of a training step."""


class Eye(ABC):
    """Sees the gradients of all units of one kind, once, chunk by chunk."""

    def __init__(self, units: Units) -> None:
        self.units = units

    def begin(self) -> None:
        """A block of populations begins."""
        return

    @abstractmethod
    def see(self, chunk: Chunk) -> None:
        """Further units of the populations of this block."""

    def end(self) -> None:
        """The block is complete."""
        return


class Diagnostic(ABC):
    """One thing to know about a training.

    Attributes:
        name: as in ``trainer.diagnostics``.
        kinds: of units that it can look at; ``"predictive"`` for what models predict.
        eye: what it sees gradients with; None for none.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    eye: ClassVar[type[Eye] | None] = None

    @abstractmethod
    def conclude(
        self, step: int, watched: Watched, seen: Mapping[str, Any], tracker: Tracker
    ) -> Mapping[str, float]:
        """Scalars of one look.

        Args:
            step: of the training, counted from 0.
            watched: the trainer.
            seen: each kind of unit to the eye, after it has seen all.
            tracker: for histograms and curves, recorded at ``step + 1`` as all numbers of a step.
        """

    def draw(self, step: int, tracker: Tracker) -> None:
        """Figures of what is known so far, at a validation after ``step`` steps."""
        return

    def state(self) -> dict[str, Any]:
        """What it remembers, plain or tensors."""
        return {}

    def state_kind(self) -> Kind:
        """What `state` has to be in a checkpoint."""
        return mapping({})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        return
