"""Reading one picture, and making it smaller.

Axes: N pictures, [height, width, channels] of a picture as it is read.
"""

from __future__ import annotations

import io
import struct
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = [
    "LARGEST",
    "PictureError",
    "Pixels",
    "area_average",
    "decode",
    "decode_by_area",
    "flattened",
]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

LARGEST = 2**26
"""Bytes of a file that is read as a picture, at most: 64 MiB."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
_TIFF_LISTS = (273, 279, 324, 325)  # where strips and tiles are, and their sizes
_TIFF_BYTES = (1, 2, 6, 7)  # kinds of entries that stay bytes
_MOST_PARTS = 2**18  # tiles of 16x16 pixels in the largest picture, and some more
_AREA_MOST = 256  # pixels of a side: `area_average` needs no more
_MOST_PIXELS = 8192 * 6144  # of a camera with 50 megapixels; decoded they take 50 to 800 MB


class PictureError(ValueError):
    """Bytes that are not a whole picture; whoever knows the file's name adds it."""


def decode(data: bytes, channels: Literal[1, 3], size: int | None = None) -> Pixels:
    """Pixels of an encoded picture: ``[height, width]`` grey or ``[height, width, 3]`` RGB, uint8.

    With ``size`` the largest centred square is cut out and brought to ``[size, size]`` by
    Pillow's antialiased bilinear filter. Of several frames the first is taken; transparent
    pixels are laid on white; the camera's orientation mark is not applied.

    Read are PNG, JPEG, BMP, WebP, GIF and TIFF, whatever the file is called, of at most 50,331,648
    pixels; the size that a file claims is looked at before anything is decoded.

    Raises:
        PictureError: another format, too many pixels, a truncated or a damaged picture.
    """
    try:
        _check_tiff(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image)
            image.load()
            # Cut first: less is copied, and the box of resize() would let the filter reach over
            # the border.
            part = image if size is None else _centre(image)
            flat = flattened(part, channels)
            if size is not None:
                flat = flat.resize((size, size), Image.Resampling.BILINEAR)
            return np.array(flat, dtype=np.uint8)
    except (MemoryError, PictureError):
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"no readable {'/'.join(_FORMATS)}") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise PictureError(str(error) or type(error).__name__) from error


def decode_by_area(data: bytes, channels: Literal[1, 3], size: int) -> Pixels:
    """As `decode`, made smaller by `area_average` of what is dark, where it has at most 256 pixels.

    Black strokes on white become those of Omniglot, inverted.

    Raises:
        PictureError: see `decode`.
    """
    pixels = decode(data, channels)
    side = min(pixels.shape[:2])
    if side > _AREA_MOST or pixels.shape[0] != pixels.shape[1]:
        return decode(data, channels, size)
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    small: Pixels = 255 - area_average(255 - planes, size)
    return small[0] if channels == 1 else small.transpose(1, 2, 0)


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


def _check_tiff(data: bytes) -> None:
    """Refuse a TIFF of more strips or tiles than pictures have, before Pillow lists them.

    Each entry of such a list takes Pillow 10 µs and 250 bytes, before the size is known.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    if 43 in data[2:4]:
        raise PictureError("BigTIFF, which is for files beyond 4 GiB, is not read")
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, start)
    for entry in range(entries):
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, start + 2 + 12 * entry)
        if (tag in _TIFF_LISTS or kind not in _TIFF_BYTES) and count > _MOST_PARTS:
            raise PictureError(f"{count} entries of TIFF tag {tag}; at most {_MOST_PARTS} are read")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise PictureError(f"{width}x{height} pixels; at most {_MOST_PIXELS} are read")


def flattened(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """One opaque picture in the wanted mode."""
    if image.mode.startswith("I;16"):
        # Pillow clips 16 bits to 8 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise PictureError("32-bit pixels have no known range; 8 or 16 bits are needed")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, _in_mode(image, "RGBA"))
    return _in_mode(image, "L" if channels == 1 else "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode, itself where it is in that mode: a large one is not copied."""
    return image if image.mode == mode else image.convert(mode)


def _centre(image: Image.Image) -> Image.Image:
    """The largest centred square."""
    side = min(image.size)
    if image.size == (side, side):
        return image
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
