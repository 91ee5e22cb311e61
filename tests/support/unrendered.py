"""Runs whose figures are made but not drawn as pixels, which takes a third of a tiny training.

Figures are drawn in the tests of each (`tests.tracking`, `tests.trainers`), by processes of their
own, and by the commands that say `with_pixels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard._utils import figure_to_image

__all__ = ["with_pixels", "without_pixels"]

WRITER = "torch.utils.tensorboard.writer.figure_to_image"


def without_pixels(patch: pytest.MonkeyPatch) -> None:
    """Have TensorBoard's writer take one black pixel for each figure."""
    patch.setattr(WRITER, _one_pixel)


def with_pixels(patch: pytest.MonkeyPatch) -> None:
    """Have them drawn where a room leaves it out."""
    patch.setattr(WRITER, figure_to_image)


def _one_pixel(figures: Any, close: bool = True) -> np.ndarray[Any, Any]:
    return np.zeros((3, 1, 1), dtype=np.uint8)
