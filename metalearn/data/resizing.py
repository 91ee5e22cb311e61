"""Data sets at another size, so that a model of one can be asked about another.

Axes: N samples, [channels, height, width] of a picture.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from metalearn.data.classification import ClassificationData
from metalearn.data.pictures import Pixels, area_average
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["resized"]

_LARGEST = 256  # side up to which area averages are exact


@checked
def resized(
    data: ClassificationData, *, image_size: int, channels: int | None = None, margin: int = 0
) -> ClassificationData:
    """The same samples and splits with pictures of another size: letters for a model of digits.

    Pictures lose ``margin`` pixels on each side and are brought to ``image_size`` by exact area
    averaging (`area_average`), so that the mean brightness of what is left stays. One channel
    becomes three by repeating it; three become one as luma, ``round(0.299 R + 0.587 G + 0.114 B)``.

    Args:
        data: square uint8 pictures of 1 or 3 channels.
        image_size: side of the new pictures in pixels, 1 to 256.
        channels: 1 or 3; None keeps them.
        margin: pixels cut off on each side beforehand. Letters of 28 pixels stand clear of the
            border, digits of scikit-learn touch it: with a margin of 4 both fill the picture.

    Raises:
        SettingError: a size that cannot be had, or data that are not such pictures.
    """
    check_whole("image_size", image_size, 1)
    if image_size > _LARGEST:
        raise SettingError("image_size", image_size, f"at most {_LARGEST} is accepted")
    if channels is not None and (type(channels) is not int or channels not in (1, 3)):
        raise SettingError("channels", channels, "1 (grey), 3 (colour) or null is needed")
    shape = data.input_shape
    fits = data.inputs.dtype == torch.uint8 and shape[0] in (1, 3) and shape[1] == shape[2]
    if not fits or shape[1] > _LARGEST:
        found = f"{data.inputs.dtype} {list(data.inputs.shape)}"
        accepted = f"square uint8 pictures of 1 or 3 channels, at most {_LARGEST} wide, are needed"
        raise SettingError("data.inputs", found, accepted)
    check_whole("margin", margin, 0)
    if 2 * margin >= shape[1]:
        accepted = f"pictures are {shape[1]} pixels wide, so at most {(shape[1] - 1) // 2}"
        raise SettingError("margin", margin, accepted)
    inside = slice(margin, shape[1] - margin)
    pictures = _recoloured(data.inputs.numpy()[:, :, inside, inside], channels or shape[0])
    flat = pictures.reshape(-1, *pictures.shape[-2:])
    small = area_average(flat, image_size).reshape(*pictures.shape[:2], image_size, image_size)
    return replace(data, inputs=torch.from_numpy(small))


def _recoloured(pictures: Pixels, channels: int) -> Pixels:
    if pictures.shape[1] == channels:
        return pictures
    if channels == 3:
        return np.repeat(pictures, 3, axis=1)
    weights = np.array([299, 587, 114])
    luma: Pixels = ((np.einsum("nchw,c->nhw", pictures, weights) + 500) // 1000).astype(np.uint8)
    return luma[:, None]
