"""Omniglot's pictures out of an archive or an unpacked folder, every one of them checked.

Axes: N = 20 drawings of a character, [105, 105] pixels of an original.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from metalearn.data.omniglot_layout import ALPHABETS, DRAWINGS, class_names
from metalearn.data.pictures import PictureError, Pixels, area_average, decode
from metalearn.errors import DataError
from metalearn.files import check_regular, read_regular
from metalearn.stretches import stretch

__all__ = ["fingerprint", "parts_in", "read_pictures"]

_SIDE = 105
_LARGEST = 2**26  # bytes of an archive; the official ones have 10 and 6 million
_LARGEST_DRAWING = 2**16  # bytes of a picture; they have 150 to 400
_PICTURE = re.compile(r"(?:.*/)?([^/]+/character\d+)/\d+_(\d+)\.png")
_UNREADABLE = (
    OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_pictures(source: Path, alphabets: Mapping[str, int], size: int) -> dict[str, Pixels]:
    """Character name to its drawings ``[20, size, size]``, sorted by drawer, bright on dark.

    Raises:
        DataError: a damaged archive, a missing or foreign character, a missing drawing, an
            unreadable picture; the first one found is named.
    """
    with _opened(source) as (members, read):
        files = _checked(source, members, alphabets)
        found = {}
        with stretch(f"reading {source.name}", len(files), "characters") as tell:
            for character, drawings in files.items():
                pixels = np.stack([_drawing(source, member, read) for member in drawings])
                found[character] = area_average(pixels, size)
                tell(1)
        return found


def fingerprint(sources: Iterable[Path]) -> str:
    """A checksum that changes when the sources do.

    Of an archive all bytes count; of a folder the names, sizes and times of its pictures,
    because reading 32460 small files again would take as long as not having packed them.
    """
    digest = hashlib.sha256()
    for source in sources:
        if source.is_dir():
            for name in _listed(source):
                stat = (source / name).stat()
                digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        else:
            try:
                digest.update(hashlib.sha256(read_regular(source, _LARGEST)).digest())
            except OSError as error:
                raise DataError(f"{source} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def parts_in(folder: Path) -> dict[str, Path]:
    """Part name to its archive or, where there is none, its unpacked folder."""
    found = {}
    for part in ALPHABETS:
        archive, unpacked = folder / f"{part}.zip", folder / part
        if archive.is_file():
            found[part] = archive
        elif unpacked.is_dir():
            found[part] = unpacked
    return found


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names of the files of an archive or folder, and what reads one of them."""
    if source.is_dir():
        yield _listed(source), lambda name: read_regular(source / name, _LARGEST_DRAWING)
        return
    try:
        check_regular(source, _LARGEST)
        archive = zipfile.ZipFile(source)
    except _UNREADABLE as error:
        raise DataError(
            f"{source} is not a whole zip archive ({error}): delete it and fetch it again"
        ) from error
    with archive:
        yield archive.namelist(), lambda name: _member(archive, name)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive, its size and kind looked at before it is inflated."""
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise PictureError("it is encrypted")
    # zlib stops at the size that is given here; other kinds of compression need not.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PictureError(f"it is compressed by method {member.compress_type}; deflate is read")
    if member.file_size > _LARGEST_DRAWING:
        raise PictureError(f"{member.file_size} bytes; at most {_LARGEST_DRAWING} are read")
    return archive.read(member)


def _listed(folder: Path) -> list[str]:
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".png")
    )


def _checked(
    source: Path, members: Iterable[str], alphabets: Mapping[str, int]
) -> dict[str, list[str]]:
    """Character to its 20 files sorted by drawer, or a sentence about the first fault."""
    found: dict[str, list[tuple[int, str]]] = {}
    for member in members:
        match = _PICTURE.fullmatch(member)
        if match and "__MACOSX" not in member:
            found.setdefault(match[1], []).append((int(match[2]), member))
    expected = class_names(alphabets)
    for name in expected:
        if name not in found:
            there = sum(other in found for other in expected)
            raise DataError(
                f"{source}: {there} of {len(expected)} characters; the first missing is {name}"
            )
    if len(found) > len(expected):
        foreign = min(set(found) - set(expected))
        raise DataError(f"{source}: {foreign} is not one of Omniglot's characters")
    for name in expected:
        drawers = sorted(drawer for drawer, _ in found[name])
        if len(drawers) != DRAWINGS:
            raise DataError(f"{source}: {name} has {len(drawers)} of {DRAWINGS} drawings")
        if drawers != list(range(1, DRAWINGS + 1)):
            raise DataError(f"{source}: {name}'s drawings are not numbered from 1 to {DRAWINGS}")
    return {name: [member for _, member in sorted(found[name])] for name in expected}


def _drawing(source: Path, member: str, read: Callable[[str], bytes]) -> Pixels:
    """One original ``[105, 105]``, inverted: strokes 255 on 0."""
    try:
        pixels = decode(read(member), channels=1)
    except (*_UNREADABLE, PictureError) as error:
        raise DataError(f"{source}: {member} cannot be read as a picture ({error})") from error
    if pixels.shape != (_SIDE, _SIDE):
        height, width = pixels.shape
        raise DataError(f"{source}: {member} is {width}x{height}, not {_SIDE}x{_SIDE} pixels")
    return 255 - pixels
