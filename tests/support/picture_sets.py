"""Published data sets in their own formats, with few pictures."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metalearn.data.known_splits import CIFAR100_SUPERCLASSES

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
