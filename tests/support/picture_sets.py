"""Published data sets in their own formats, with few pictures."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from metalearn.data.known_splits import CIFAR100_SUPERCLASSES, ClassSplits

CIFAR_COUNTS = {"train": 3, "test": 1}
"""Pictures of each class in the parts of `cifar_parts`."""


def cifar_parts(seed: int = 0) -> dict[str, bytes]:
    """Records of both parts of CIFAR-100, in random order.

    The red pixels of picture n of a class are its class, the green ones n, the blue ones 200.
    """
    groups = list(CIFAR100_SUPERCLASSES)
    group_of = {c: groups.index(g) for g, found in CIFAR100_SUPERCLASSES.items() for c in found}
    random, files, first = np.random.default_rng(seed), {}, 0
    for part, count in CIFAR_COUNTS.items():
        rows = [
            bytes([group_of[name], label, *[label] * 1024, *[number] * 1024, *[200] * 1024])
            for label, name in enumerate(sorted(group_of))
            for number in range(first, first + count)
        ]
        # The order within a class stays, so that a test can tell the pictures apart.
        keys = np.sort(random.random((100, count)), axis=1).ravel()
        files[f"{part}.bin"] = b"".join(rows[i] for i in np.argsort(keys))
        first += count
    return files


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A gzipped archive of the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cifar_archive(folder: Path, parts: Mapping[str, bytes] | None = None) -> Path:
    """cifar-100-binary.tar.gz in a folder."""
    found = cifar_parts() if parts is None else parts
    files = {f"cifar-100-binary/{name}": content for name, content in found.items()}
    return write_tar(folder / "cifar-100-binary.tar.gz", files)


def small_picture(number: int, size: int = 6, kind: str = "PNG") -> bytes:
    """An encoded picture whose red pixels are the number (below 256), whose blue ones are 200."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = number % 256, 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def class_pictures(splits: ClassSplits, each: int = 2) -> Iterator[tuple[str, str, str, bytes]]:
    """Split, class, file name and bytes; the number of a picture is that of its class."""
    order = sorted(name for names in splits.values() for name in names)
    home = {name: split for split, names in splits.items() for name in names}
    for number, name in enumerate(order):
        for i in range(each):
            yield home[name], name, f"{name}_{i}.png", small_picture(number)


def write_files(root: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Files by their names below a folder, which are made."""
    for name, content in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tree(root: Path, splits: ClassSplits, *, divided: bool = True, each: int = 2) -> Path:
    """Folders of classes, below those of splits or not."""
    found = class_pictures(splits, each)
    return write_files(
        root, ((f"{s}/{c}/{n}" if divided else f"{c}/{n}", b) for s, c, n, b in found)
    )


def write_lists(root: Path, splits: ClassSplits, *, by_class: bool = False, each: int = 2) -> Path:
    """Three lists, and pictures in ``images``, of each class in a folder or not."""
    rows: dict[str, list[str]] = {split: ["filename,label"] for split in splits}
    files = []
    for split, name, file, content in class_pictures(splits, each):
        rows[split].append(f"{file},{name}")
        files.append((f"images/{name}/{file}" if by_class else f"images/{file}", content))
    for split, lines in rows.items():
        short = "val" if split == "validation" else split
        files.append((f"{short}.csv", ("\n".join(lines) + "\n").encode()))
    return write_files(root, files)
