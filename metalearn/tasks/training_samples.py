"""All pictures of the training classes that tasks draw from, as samples of one classification.

Axes: B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metalearn.random_streams import AddressedStream
from metalearn.tasks.class_pools import ClassPools

__all__ = ["TrainingSamples"]


class TrainingSamples:
    """Pictures with their quarter turns, and the number of the class that both make.

    Args:
        pools: of the training split.
        pictures: of each class of the data, the numbers of its pictures.
    """

    def __init__(self, pools: ClassPools, pictures: Sequence[np.ndarray]) -> None:
        every = pools.every()
        sizes = [len(pictures[c]) for c, _ in every]
        self._pictures = np.concatenate([pictures[c] for c, _ in every])
        self._turns = np.repeat([turn for _, turn in every], sizes)
        self._classes = np.repeat(np.arange(len(every)), sizes)
        self.classes = len(every)
        """How many: a class and each quarter turn of it are classes of their own."""

    def draw(self, stream: AddressedStream, size: int) -> tuple[np.ndarray, ...]:
        """Picture numbers, quarter turns and classes, each ``[B]``; every picture is as likely."""
        rows = stream.with_replacement(len(self._pictures), size)
        return self._pictures[rows], self._turns[rows], self._classes[rows]
