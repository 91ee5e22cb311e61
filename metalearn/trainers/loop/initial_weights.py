"""Weights from elsewhere, for what a loop trains.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalearn.models import Ensemble, SavedWeights
from metalearn.models.weights import check_patterns, of_members, put_entries, put_weights
from metalearn.trainers.loop.protocols import Training
from metalearn.trainers.members.trained import LEARNT

__all__ = ["start_beside", "start_from"]


def start_from(loop: Training, weights: SavedWeights, skip: Sequence[str]) -> None:
    """Put saved weights into the module, and what was learnt beside them beside it.

    Raises:
        SettingError, DataError: see `metalearn.trainers.trainer.Trainer.start_from`.
    """
    own = [*loop.module.state_dict(), *_learnt(loop)]
    check_patterns(skip, [*own, *weights.entries, *weights.learnt])
    put_weights(loop.module, weights, skip)
    start_beside(loop, weights, skip)


def start_beside(loop: Training, weights: SavedWeights, skip: Sequence[str]) -> None:
    """Put what a run learnt beside its weights in its place; of a file there is nothing.

    Raises:
        DataError: names or shapes that do not fit.
    """
    given = dict(weights.learnt)
    if given:
        if isinstance(loop.module, Ensemble) and not of_members(weights.entries):
            given = {name: _for_each(value, len(loop.module)) for name, value in given.items()}
        put_entries(_learnt(loop), given, skip, path=weights.path)


def _learnt(loop: Training) -> dict[str, Any]:
    beside = {} if loop.beside is None else loop.beside.state_dict()
    return {f"{LEARNT}{name}": value for name, value in beside.items()}


def _for_each(value: Tensor, members: int) -> Tensor:
    return value.expand(members, *value.shape)
