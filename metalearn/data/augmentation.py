"""Random changes of pictures during training: turns, mirror images, shifts.

Axes: M members, B samples of a batch, S = M·B or B samples as one batch, [channels, height, width]
of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.tree import check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.signatures import checked, known_fields

__all__ = ["Augmentation", "augment", "mirror", "rotate", "shift"]

_DRAWS = 4  # of a sample: vertical shift, horizontal shift, mirror, angle


@known_fields
@dataclass(frozen=True)
class Augmentation:
    """What `augment` may do to a picture; nothing by default.

    Attributes:
        max_shift: pixels; shifts up, down, left and right by up to as many, zeros move in.
        flip: mirror images, left and right exchanged, of every other picture on average.
        rotate: degrees; turns about the centre by up to as many either way, zeros move in.

    Raises:
        SettingError: a setting out of range.
    """

    max_shift: int = 0
    flip: bool = False
    rotate: float = 0.0

    def __post_init__(self) -> None:
        check_whole("max_shift", self.max_shift, 0)
        if not isinstance(self.flip, bool):
            raise SettingError("flip", self.flip, "true or false is needed")
        number = isinstance(self.rotate, int | float) and not isinstance(self.rotate, bool)
        if not number or not 0 <= self.rotate <= 180:
            raise SettingError("rotate", self.rotate, "degrees from 0 to 180 are needed")

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return bool(self.max_shift or self.flip or self.rotate)


@checked
def augment(
    inputs: Tensor, augmentation: Augmentation, *, seeds: Sequence[int], step: int
) -> Tensor:
    """A batch with every picture turned, then mirrored, then shifted at random.

    The draws of sample b belong to (seed of its member, step, b): a member gets the pictures that
    a run of that member alone gets. Without active settings the inputs come back as they are.

    Args:
        inputs: float pictures ``[M, B, C, H, W]``, or ``[B, C, H, W]`` that all members share.
        augmentation: what may be done.
        seeds: one a member.
        step: of the run, 0 or above.

    Returns:
        ``[M, B, C, H, W]``; ``[B, C, H, W]`` where the inputs are shared and all seeds equal.

    Raises:
        SettingError: inputs that are no batch of pictures, seeds that do not fit, shifts as large
            as the pictures.
    """
    if not augmentation.active:
        return inputs
    _check_inputs(inputs, augmentation, seeds)
    check_whole("step", step, 0)
    if inputs.ndim == 4 and len(set(seeds)) > 1:
        inputs = inputs.expand(len(seeds), *inputs.shape)
    own = seeds[:1] if inputs.ndim == 4 else seeds
    draws = torch.from_numpy(_draw(own, step, inputs.shape[-4])).to(inputs.device)
    pictures = inputs.flatten(0, -4)
    if augmentation.rotate:
        angles = (2 * draws[:, 3] - 1) * augmentation.rotate
        pictures = rotate(pictures, angles)
    if augmentation.flip:
        pictures = mirror(pictures, draws[:, 2] < 0.5)
    if augmentation.max_shift:
        reach = augmentation.max_shift
        down, right = ((draws[:, :2] * (2 * reach + 1)).long() - reach).unbind(1)
        pictures = shift(pictures, down, right, reach=reach)
    return pictures.reshape(inputs.shape)


def shift(inputs: Tensor, down: Tensor, right: Tensor, *, reach: int) -> Tensor:
    """Each picture moved by whole pixels, zeros moving in: ``y[i, j] = x[i - down, j - right]``.

    Args:
        inputs: ``[S, C, H, W]``.
        down: int64 ``[S]``, in -reach..reach; negative values move up.
        right: int64 ``[S]``, in -reach..reach; negative values move left.
        reach: the largest shift there is.
    """
    height, width = inputs.shape[-2:]
    rows = torch.arange(height, device=inputs.device) + (reach - down)[:, None]
    columns = torch.arange(width, device=inputs.device) + (reach - right)[:, None]
    places = (rows[:, :, None] * (width + 2 * reach) + columns[:, None]).flatten(1)
    framed = F.pad(inputs, (reach, reach, reach, reach)).flatten(2)
    return framed.gather(2, places[:, None].expand(-1, inputs.shape[1], -1)).view(inputs.shape)


def mirror(inputs: Tensor, chosen: Tensor) -> Tensor:
    """Left and right exchanged where ``chosen``, bool ``[S]``, says so; inputs ``[S, C, H, W]``."""
    return torch.where(chosen[:, None, None, None], inputs.flip(-1), inputs)


def rotate(inputs: Tensor, degrees: Tensor) -> Tensor:
    """Each picture turned about its centre, bilinear, zeros moving in.

    Args:
        inputs: ``[S, C, H, W]``.
        degrees: ``[S]``; positive values turn counter-clockwise as one looks at the picture.
    """
    height, width = inputs.shape[-2:]
    angle = degrees.to(inputs.dtype)[:, None, None] * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    y = torch.arange(height, device=inputs.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=inputs.device) - (width - 1) / 2
    # Where each pixel comes from, in pixels from the centre, then in units of half a side.
    source = torch.stack(
        [(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], dim=-1
    )
    return F.grid_sample(inputs, source.to(inputs.dtype), padding_mode="zeros", align_corners=False)


def _draw(seeds: Sequence[int], step: int, batch: int) -> np.ndarray:
    """``[M·B, 4]`` uniform draws, float64; those of equal seeds are equal."""
    found = {
        seed: AddressedStream(seed, "augmentation", step).uniform(batch * _DRAWS)
        for seed in dict.fromkeys(seeds)
    }
    return np.stack([found[seed] for seed in seeds]).reshape(-1, _DRAWS)


def _check_inputs(inputs: Tensor, augmentation: Augmentation, seeds: Sequence[int]) -> None:
    check_tensors(inputs, "inputs")
    shape = list(inputs.shape)
    if inputs.ndim not in (4, 5) or not inputs.is_floating_point():
        accepted = "float pictures [B, C, H, W] or [M, B, C, H, W] are needed"
        raise SettingError("inputs", f"{inputs.dtype} {shape}", accepted)
    if not len(seeds):
        raise SettingError("seeds", seeds, "at least one seed is needed, one a member")
    for seed in seeds:
        check_seed(seed)
    if inputs.ndim == 5 and len(seeds) != len(inputs):
        raise SettingError("seeds", seeds, f"one a member is needed, {len(inputs)} of them")
    if augmentation.max_shift >= min(shape[-2:]):
        side = min(shape[-2:])
        accepted = f"pictures are {side} pixels wide, so at most {side - 1} are accepted"
        raise SettingError("max_shift", augmentation.max_shift, accepted)
