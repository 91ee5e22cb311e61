"""CUB: 11,788 photographs of 200 kinds of birds.

Axes: N pictures, C = 200 classes.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from metalearn.data.class_check import class_table
from metalearn.data.conversion import ClassTable, any_converted, converted
from metalearn.data.downloads import RemoteFile, fetched
from metalearn.data.images import LabelledImages
from metalearn.data.known_splits import cub_splits
from metalearn.data.listed_pictures import ListedPictures, PictureSource, find_pictures
from metalearn.data.locations import cache_folder, data_folder
from metalearn.data.pictures import LARGEST
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["load_cub"]

ARCHIVE = RemoteFile(
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "md5:97eceeb196236b17998738112f37df78",
    largest=2**31,
)
_CLASSES = 200
_FOLDER = "CUB_200_2011"
_PICTURE = re.compile(rf"(?:\./)?{_FOLDER}/images/(\d{{3}}\.[^/]+)/([^/]+\.jpe?g)")
_LARGEST_SIDE = 512
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, tarfile.TarError, zlib.error)


@checked
def load_cub(
    root: str | Path | None = None,
    *,
    image_size: int = 84,
    download: bool = True,
    cache: str | Path | None = None,
) -> LabelledImages:
    """CUB-200-2011: 100 training, 50 validation and 50 test kinds of birds.

    The whole photographs are taken, not their bounding boxes: the largest centred square is brought
    to ``image_size``. They are converted once to an array in ``cache`` that is mapped into memory
    (`metalearn.data.conversion.converted`); nothing is unpacked to the disk.

    Args:
        root: CUB_200_2011.tgz, the folder that has it or what it unpacks to. None: ``cub``,
            ``CUB_200_2011`` or nothing below ``data_folder()``.
        image_size: side of a picture in pixels, 1 to 512.
        download: fetch the archive (1.1 GiB) into ``data_folder()`` where there is none.
        cache: folder of the array; None: ``cache_folder()``.

    Returns:
        ``images`` uint8 ``[11788, 3, image_size, image_size]``; names ``"001.Black_footed_…"``.

    Raises:
        SettingError: a setting that cannot work, or nothing at ``root``.
        DataError: the set is incomplete, damaged, or cannot be had.

    Sources: Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", 2011; splits of Chen et al., "A
    closer look at few-shot classification", ICLR 2019.
    """
    check_whole("image_size", image_size, 1, _LARGEST_SIDE)
    folder = cache_folder() if cache is None else Path(cache).expanduser()
    source = _find(root)
    if source is None:
        earlier = any_converted("cub", image_size, folder)
        if earlier is not None:
            return earlier
        archive = data_folder() / f"{_FOLDER}.tgz"
        source = _archive(fetched(ARCHIVE, archive, title="CUB", allowed=download))
    place = source.place

    def classes(listed: ListedPictures) -> ClassTable:
        names = sorted(set(listed.labels))
        numbers = [int(n[:3]) if re.match(r"\d{3}\.", n) else 0 for n in names]
        if numbers != list(range(1, _CLASSES + 1)):
            raise DataError(
                f"{place}: {len(names)} classes from {names[0]} to {names[-1]}; CUB has "
                f"{_CLASSES}, whose names begin with 001. to 200."
            )
        return class_table(listed, cub_splits(names), title="CUB", place=place)

    return converted("cub", source, classes, size=image_size, folder=folder)


def _find(root: str | Path | None) -> PictureSource | None:
    """The unpacked folder or the archive, at ``root`` or in the usual places."""
    base = data_folder() if root is None else Path(root).expanduser()
    if base.is_file():
        return _archive(base)
    for folder in (base / "cub", base / _FOLDER, base):
        if root is None and folder == base:
            continue
        inside = folder / _FOLDER if (folder / _FOLDER).is_dir() else folder
        source = find_pictures(inside) if (inside / "images").is_dir() else None
        if source is not None:
            return source
    for folder in (base, base / "cub"):
        if (folder / f"{_FOLDER}.tgz").is_file():
            return _archive(folder / f"{_FOLDER}.tgz")
    source = find_pictures(base) if root is not None else None
    if source is None and root is not None:
        raise SettingError("root", str(root), f"{_FOLDER}.tgz, or what it unpacks to, is needed")
    return source


def _archive(path: Path) -> PictureSource:
    """The pictures of the archive, which is read through once for their names and once for them."""

    def listed() -> ListedPictures:
        found = [(match[1], match[2]) for match, _ in _members(path)]
        if not found:
            raise DataError(f"{path}: no pictures {_FOLDER}/images/001.…/….jpg are in it")
        splits = [""] * len(found)
        return ListedPictures(splits, [f[0] for f in found], [f[1] for f in found], encoded)

    def encoded() -> Iterator[tuple[int, bytes]]:
        for number, (match, data) in enumerate(_members(path, read=True)):
            if len(data) > LARGEST:
                raise DataError(f"{path}: {match[0]} has more than {LARGEST} bytes")
            yield number, data

    return PictureSource(path, [path], listed)


def _members(path: Path, *, read: bool = False) -> Iterator[tuple[re.Match[str], bytes]]:
    """Pictures of the archive in its order, with up to `LARGEST` + 1 bytes of each if asked for."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                match = _PICTURE.fullmatch(member.name)
                if match and member.isreg():
                    file = archive.extractfile(member) if read else None
                    yield match, file.read(LARGEST + 1) if file else b""
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read ({error}): remove it and fetch the official {_FOLDER}.tgz again"
        ) from error
