"""Random affine changes of pictures, each within a range: turns, scales, shears and shifts.

Axes: S pictures, [channels, height, width] of a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError
from metalearn.signatures import checked, known_fields

__all__ = ["AFFINE_DRAWS", "AffineRanges", "change_pictures", "warp"]

AFFINE_DRAWS = 6
"""Uniform draws of a picture: angle, two scales, shear, two shifts."""

_MOST = {"rotate": 180.0, "scale": 0.9, "shear": 1.0, "shift": 0.5}


@known_fields
@dataclass(frozen=True)
class AffineRanges:
    """How far a picture may be changed: a range r stands for a value uniform in [-r, r].

    A point ``(x, y)`` from the centre, to the right and downward, goes to
    ``R · [[1, k], [0, 1]] · diag(a, b) · (x, y) + t``. Nothing is changed by default.

    Attributes:
        rotate: degrees of the turn R, at most 180.
        scale: a − 1 and b − 1, each by itself, at most 0.9: 0.2 has sides of 80 to 120 %.
        shear: k, pixels to the side for each pixel of height, at most 1.
        shift: t, as a share of the side, each way by itself, at most 0.5.

    Raises:
        SettingError: a range out of bounds.
    """

    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), _MOST[field.name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= most:
                raise SettingError(field.name, value, f"a number from 0 to {most:g} is needed")

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return any(getattr(self, field.name) for field in fields(self))


@checked
def change_pictures(inputs: Tensor, ranges: AffineRanges, draws: Tensor) -> Tensor:
    """Each picture changed as its own draws say, bilinear, zeros moving in.

    Args:
        inputs: ``[S, C, H, W]``, of real numbers.
        ranges: how far.
        draws: ``[S, 6]`` in [0, 1]; 1/2 everywhere leaves a picture as it is.

    Raises:
        SettingError: no batch of pictures, or draws that do not fit.
    """
    check_tensors(inputs, "inputs")
    if inputs.ndim != 4 or not inputs.is_floating_point():
        found = f"{inputs.dtype} {list(inputs.shape)}"
        raise SettingError("inputs", found, "float pictures [S, C, H, W] are needed")
    if draws.shape != (len(inputs), AFFINE_DRAWS):
        accepted = f"[{len(inputs)}, {AFFINE_DRAWS}] are needed"
        raise SettingError("draws", list(draws.shape), accepted)
    if not ranges.active:
        return inputs
    angle, wide, high, lean, right, down = (2 * draws.to(inputs) - 1).unbind(1)
    angle = angle * (ranges.rotate * math.pi / 180)
    lean, cos, sin = lean * ranges.shear, angle.cos(), angle.sin()
    wide, high = 1 + wide * ranges.scale, 1 + high * ranges.scale
    # The inverse, diag(1/a, 1/b) · [[1, -k], [0, 1]] · Rᵀ: where each pixel comes from.
    top = torch.stack([cos + lean * sin, sin - lean * cos], 1) / wide[:, None]
    low = torch.stack([-sin, cos], 1) / high[:, None]
    side = inputs.new_tensor([inputs.shape[-1], inputs.shape[-2]])
    shifts = torch.stack([right, down], 1) * ranges.shift * side
    return warp(inputs, torch.stack([top, low], 1), shifts)


def warp(inputs: Tensor, source: Tensor, shifts: Tensor) -> Tensor:
    """Pictures whose point p, in pixels from the centre, is that of the inputs at A · (p − t).

    Args:
        inputs: ``[S, C, H, W]``; what lies outside is zero.
        source: A, ``[S, 2, 2]``, of (x, y) with y downward.
        shifts: t, ``[S, 2]``.
    """
    side = inputs.new_tensor([inputs.shape[-1], inputs.shape[-2]])
    scaled = source * (side / side[:, None])  # in units of half a side, as grid_sample counts
    moved = -(source @ shifts[:, :, None]) * (2 / side)[:, None]
    grid = F.affine_grid(torch.cat([scaled, moved], 2), list(inputs.shape), align_corners=False)
    return F.grid_sample(inputs, grid, padding_mode="zeros", align_corners=False)
