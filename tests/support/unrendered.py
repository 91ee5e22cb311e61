"""Runs whose figures are made but not drawn as pixels, which takes a third of a tiny training.

Figures are drawn in the tests of each (`tests.tracking`, `tests.trainers`) and by the commands of
`tests.config`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

__all__ = ["without_pixels"]


def without_pixels(patch: pytest.MonkeyPatch) -> None:
    """Have TensorBoard's writer take one black pixel for each figure."""
    patch.setattr("torch.utils.tensorboard.writer.figure_to_image", _one_pixel)


def _one_pixel(figures: Any, close: bool = True) -> np.ndarray[Any, Any]:
    return np.zeros((3, 1, 1), dtype=np.uint8)
