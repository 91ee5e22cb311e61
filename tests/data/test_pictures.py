"""Reading and shrinking of pictures."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from metalearn.data.pictures import PictureError, area_average, decode


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_reduction_is_the_mean_over_areas() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 15, 15), dtype=np.uint8)
    # Every old pixel becomes 4x4 equal ones, every new one is the mean of 15x15 of those.
    fine = np.kron(pixels.astype(np.float64), np.ones((1, 4, 4)))
    means = fine.reshape(2, 4, 15, 4, 15).mean(axis=(2, 4))
    assert np.array_equal(area_average(pixels, 4), np.floor(means + 0.5).astype(np.uint8))


@pytest.mark.parametrize("size", [1, 20, 28, 105, 128])
def test_reduction_keeps_full_and_empty_pictures(size: int) -> None:
    full = np.full((1, 105, 105), 255, np.uint8)
    assert (area_average(full, size) == np.full((1, size, size), 255)).all()
    assert (area_average(0 * full, size) == 0).all()


def test_reduction_is_pinned() -> None:
    ramp = np.arange(105 * 105, dtype=np.uint32) * 2654435761 >> 24 & 255
    reduced = area_average(ramp.astype(np.uint8).reshape(1, 105, 105), 28)
    digest = hashlib.sha256(reduced.tobytes()).hexdigest()
    assert digest == "6fb099bd464e9d25db6241b9c67a0be288aa580f8bc76c588d682f18113882dc"


def test_grey_and_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels))
    assert np.array_equal(decode(data, 3), pixels)
    assert np.array_equal(decode(data, 1), np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_become_three_channels(mode: str) -> None:
    kind = "tiff" if mode == "CMYK" else "png"
    image = Image.new("RGB", (6, 6), "white").convert(mode)
    assert (decode(encoded(image, kind), 3) == np.full((6, 6, 3), 255)).all()


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixels_lie_on_white(mode: str) -> None:
    if mode == "RGBA":
        data = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    else:
        data = encoded(Image.new("P", (4, 4), 0), transparency=bytes([0]))
    assert (decode(data, 1) == 255).all()


def test_sixteen_bits_are_scaled() -> None:
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16))
    assert decode(encoded(image), 1).tolist() == [[0, 1, 128, 255]]


def test_pixels_without_a_range_are_refused() -> None:
    data = encoded(Image.fromarray(np.zeros((3, 3), np.float32)), "tiff")
    with pytest.raises(PictureError, match="32-bit pixels have no known range"):
        decode(data, 1)


def test_first_frame_is_taken() -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (decode(data, 1) == 10).all()


@pytest.mark.parametrize("turned", [False, True])
def test_the_centred_square_is_cut_out(turned: bool) -> None:
    pixels = np.zeros((20, 60), np.uint8)
    pixels[:, 20:40] = 200  # the square, between dark sides
    data = encoded(Image.fromarray(pixels.T if turned else pixels))
    assert (decode(data, 1, 10) == np.full((10, 10), 200)).all()
    assert (decode(data, 3, 40) == np.full((40, 40, 3), 200)).all()


@pytest.mark.parametrize("kept", [0, 4, 60, -200])
def test_damaged_pictures_are_refused(kept: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 30), dtype=np.uint8)
    with pytest.raises(PictureError, match=r"\w"):
        decode(encoded(Image.fromarray(noise))[:kept], 1)
