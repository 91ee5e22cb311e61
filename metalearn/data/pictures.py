"""Reading one picture, and making it smaller.

Axes: N pictures, [height, width, channels] of a picture as it is read.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

__all__ = ["PictureError", "Pixels", "area_average", "decode"]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class PictureError(ValueError):
    """Bytes that are not a whole picture; whoever knows the file's name adds it."""


def decode(data: bytes, channels: Literal[1, 3], size: int | None = None) -> Pixels:
    """Pixels of an encoded picture: ``[height, width]`` grey or ``[height, width, 3]`` RGB, uint8.

    With ``size`` the largest centred square is cut out and brought to ``[size, size]`` by
    Pillow's antialiased bilinear filter. Of several frames the first is taken; transparent
    pixels are laid on white; the camera's orientation mark is not applied.

    Raises:
        PictureError: no picture format that Pillow knows, a truncated or a damaged picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            flat = _flatten(image, channels)
        pixels = flat if size is None else _square(flat, size)
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise PictureError(str(error) or type(error).__name__) from error
    return np.asarray(pixels, dtype=np.uint8)


def area_average(pictures: Pixels, size: int) -> Pixels:
    r"""Shrink square pictures by exact area averaging: ``[N, S, S]`` to ``[N, size, size]``.

    $$y_{ij} = \mathrm{round}\Bigl(\frac{1}{S^2} \sum_{ab} w_{ia} w_{jb} x_{ab}\Bigr)$$

    where w is the length that an old and a new pixel share, in units in which a side has
    S·size parts. All sums are whole numbers below 2^24, exact in float32, so that the result
    is the same bit for bit on every machine. Needs S ≤ 256; halves are rounded up.
    """
    side = pictures.shape[-1]
    if size == side:
        return pictures
    edges_old = np.arange(side + 1) * size
    edges_new = np.arange(size + 1) * side
    low = np.maximum(edges_new[:-1, None], edges_old[None, :-1])
    high = np.minimum(edges_new[1:, None], edges_old[None, 1:])
    weights = np.maximum(high - low, 0).astype(np.float32)
    sums = np.matmul(np.matmul(weights, pictures.astype(np.float32)), weights.T)
    area = side * side
    rounded: Pixels = ((2 * sums.astype(np.int32) + area) // (2 * area)).astype(np.uint8)
    return rounded


def _flatten(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """One opaque picture in the wanted mode."""
    if image.mode.startswith("I;16"):
        # Pillow clips 16 bits to 8 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise PictureError("32-bit pixels have no known range; 8 or 16 bits are needed")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cut first: the box of resize() lets the filter reach over the border.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.BILINEAR)
