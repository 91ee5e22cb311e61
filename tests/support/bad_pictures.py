"""Files that are called pictures and are none, or too much of one: what each is, and why it fails.

Each entry of `FILES` puts one file at a path; beside it stands what the refusal says.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Put = Callable[[Path], object]


def encoded(
    kind: str, size: tuple[int, int] = (9, 7), mode: str = "RGB", **options: object
) -> bytes:
    """A picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, rows: int = 1, bits: int = 8, kind: int = 0) -> bytes:
    """A PNG that claims a size and brings a few rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    channels = {0: 1, 2: 3, 6: 4}[kind]
    data = zlib.compress(bytes((width * bits * channels + 7) // 8 + 1) * rows, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def bmp(width: int, height: int) -> bytes:
    """A BMP that claims a size."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(100)


def gif(width: int, height: int) -> bytes:
    """A GIF that claims a size."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
    return b"GIF89a" + screen + frame


def tiff(order: str, width: int, height: int, *, tag: int = 273, kind: int = 4, count: int = 1):
    """A TIFF that claims a size, and a list of so many strips."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags = [t if t[1] == 4 or order == "<" else (*t[:3], t[3] << 16) for t in tags]
    tags += [(tag, kind, count, 8), (279, 4, 1, 64)]
    entries = b"".join(struct.pack(f"{order}HHII", *t) for t in tags)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return (
        start + struct.pack(f"{order}H", len(tags)) + entries + bytes(4 + min(4 * count, 400_000))
    )


def jpeg(width: int, height: int) -> bytes:
    """A JPEG that claims a size."""
    data = bytearray(encoded("jpeg", (16, 16)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """A lossless WebP that claims a size."""
    data = bytearray(encoded("webp", (16, 16), lossless=True))
    place = data.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", data, place)
    bits = (bits >> 28 << 28) | (height - 1) << 14 | (width - 1)
    data[place : place + 4] = struct.pack("<I", bits)
    return bytes(data)


def zipped(data: bytes) -> bytes:
    """A zip archive of one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("0.png", data)
    return buffer.getvalue()


def of(data: bytes | Callable[[], bytes]) -> Put:
    """Puts bytes; those that take long to make are made when they are put."""
    return lambda path: path.write_bytes(data() if callable(data) else data)


def to(target: str) -> Put:
    """Puts a link."""
    return lambda path: path.symlink_to(target)


def _sparse(size: int) -> Put:
    def put(path: Path) -> None:
        path.write_bytes(encoded("png"))
        os.truncate(path, size)

    return put


def _listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def _to_a_pipe(path: Path) -> None:
    os.mkfifo(path.parent / ".pipe")
    path.symlink_to(".pipe")


def _to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _flipped(kind: str) -> bytes:
    data = bytearray(encoded(kind, (30, 30)))
    data[len(data) // 2] ^= 255
    data[len(data) // 2 + 1] ^= 255
    return bytes(data)


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\n(touch) system\n"
_UNKNOWN = "no readable PNG/JPEG/BMP/WEBP/GIF/TIFF"
_MUCH = r"\d+x\d+ pixels; at most 50331648 are read|exceeds limit"
_ANY = r"\w"

FILES: Mapping[str, tuple[Put, str]] = {
    # no files
    "a pipe": (os.mkfifo, "a pipe, not a file"),
    "a link to a pipe": (_to_a_pipe, "a pipe, not a file"),
    "a link to an endless device": (to("/dev/zero"), "a device, not a file"),
    "a link to a random device": (to("/dev/urandom"), "a device, not a file"),
    "a link to an empty device": (to("/dev/null"), "a device, not a file"),
    "a link to a terminal": (to("/dev/tty"), "a device, not a file|such"),
    "a link to a link to a device": (
        lambda path: (to("/dev/zero")(path.parent / ".x"), to(".x")(path)), "a device, not a file"
    ),
    "a socket": (_listening, "a socket, not a file"),
    "a link to nothing": (to("nothing.png"), "No such file"),
    "a link to itself": (_to_itself, "[Ss]ymbolic link|such"),
    "a link to the memory": (to("/proc/self/mem"), _ANY),
    "a link to the kernel's words": (to("/proc/self/maps"), _UNKNOWN),
    # too large
    "a file of 65 MiB": (_sparse(65 * 2**20), "bytes; at most 67108864 are read"),
    "a file of 1 TiB": (_sparse(2**40), "bytes; at most 67108864 are read"),
    "a PNG bomb": (of(lambda: png(12_800, 12_800, rows=12_800)), _MUCH),
    "a PNG bomb of one bit": (of(lambda: png(40_000, 40_000, rows=40_000, bits=1)), _MUCH),
    "a PNG over the limit by a row": (of(png(8192, 6145)), _MUCH),
    "a PNG of one long row": (of(png(2**26, 1)), _MUCH),
    "a PNG of one long column": (of(png(1, 2**26)), _MUCH),
    "a PNG that claims all": (of(png(2**31 - 1, 2**31 - 1, rows=0)), _MUCH),
    "a BMP that claims much": (of(bmp(10_000, 10_000)), _MUCH),
    "a BMP upside down": (of(bmp(10_000, -10_000)), _MUCH),
    "a GIF that claims much": (of(gif(10_000, 10_000)), _MUCH),
    "a GIF that claims all": (of(gif(65_535, 65_535)), _MUCH),
    "a JPEG that claims much": (of(jpeg(10_000, 10_000)), _MUCH),
    "a JPEG that claims all": (of(jpeg(65_500, 65_500)), _MUCH),
    "a WebP that claims all": (of(webp(16_383, 16_383)), _MUCH),
    "a WebP that claims much": (of(webp(10_000, 10_000)), _MUCH),
    "a TIFF that claims much": (of(tiff("<", 10_000, 10_000)), _MUCH),
    "a TIFF that claims much, big-endian": (of(tiff(">", 10_000, 10_000)), _MUCH),
    "a TIFF of a million strips": (of(tiff("<", 9, 7, count=10**6)), "1000000 entries of TIFF"),
    "a TIFF of strips as bytes": (of(tiff(">", 9, 7, kind=1, count=10**6)), "1000000 entries"),
    "a TIFF of a million samples": (of(tiff("<", 9, 7, tag=339, count=10**6)), "1000000 entries"),
    "a BigTIFF": (of(b"II+\0\x08\0\0\0" + bytes(100)), "BigTIFF"),
    # other kinds of files
    "EPS": (of(_EPS), _UNKNOWN),
    "PDF": (of(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), _UNKNOWN),
    "SVG": (of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), _UNKNOWN),
    "ICO": (of(encoded("ico", (16, 16))), _UNKNOWN),
    "ICNS": (of(encoded("icns", (16, 16))), _UNKNOWN),
    "PPM": (of(encoded("ppm")), _UNKNOWN),
    "TGA": (of(encoded("tga")), _UNKNOWN),
    "PCX": (of(encoded("pcx")), _UNKNOWN),
    "DDS": (of(encoded("dds")), _UNKNOWN),
    "SGI": (of(encoded("sgi")), _UNKNOWN),
    "JPEG 2000": (of(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)), _UNKNOWN),
    "PSD": (of(b"8BPS\0\1" + bytes(60)), _UNKNOWN),
    "WMF": (of(b"\xd7\xcd\xc6\x9a\0\0" + bytes(60)), _UNKNOWN),
    "FITS": (of(b"SIMPLE  =                    T" + bytes(60)), _UNKNOWN),
    "HDF5": (of(b"\x89HDF\r\n\x1a\n" + bytes(60)), _UNKNOWN),
    "a pickle": (of(b"cos\nsystem\n(S'exit'\ntR."), _UNKNOWN),
    "a zipped picture": (of(zipped(encoded("png"))), _UNKNOWN),
    "a gzipped picture": (of(gzip.compress(encoded("png"))), _UNKNOWN),
    "a program": (lambda path: to(sys.executable)(path), f"{_UNKNOWN}|at most"),
    # damaged
    "nothing": (of(b""), _UNKNOWN),
    "text": (of(b"not a picture"), _UNKNOWN),
    "zeros": (of(bytes(1000)), _UNKNOWN),
    "half a PNG": (of(encoded("png", (30, 30))[:-900]), "truncated"),
    "half a JPEG": (of(encoded("jpeg", (30, 30))[:-300]), "truncated"),
    "half a BMP": (of(encoded("bmp", (30, 30))[:-900]), "truncated"),
    "half a GIF": (of(encoded("gif", (30, 30), "P")[:-200]), "truncated"),
    "half a TIFF": (of(encoded("tiff", (30, 30))[:-900]), _ANY),
    "half a WebP": (of(encoded("webp", (30, 30))[:-200]), _ANY),
    "a head of a PNG": (of(encoded("png")[:20]), _ANY),
    "a head of a TIFF": (of(b"II*\0"), _ANY),
    "a TIFF that points beyond": (of(b"II*\0\xff\xff\xff\xff"), _ANY),
    "a PNG with flipped bytes": (of(_flipped("png")), _ANY),
    "a PNG without pixels": (of(png(0, 0)), _ANY),
    "a BMP without pixels": (of(bmp(0, 0)), _ANY),
    "32 bits": (of(encoded("tiff", mode="F")), "32-bit pixels"),
}  # fmt: skip
"""What is put at a path, and what the refusal says."""
