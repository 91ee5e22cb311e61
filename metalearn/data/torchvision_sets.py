"""MNIST, FashionMNIST and CIFAR-10 through torchvision.

Axes: N samples, [channels, height, width] of a picture.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metalearn.data.classification import ClassificationData
from metalearn.data.division import check_fraction, divide_samples
from metalearn.data.downloads import DOWNLOAD_FAULTS, download_timeout
from metalearn.data.locations import data_folder
from metalearn.errors import DataError, SettingError
from metalearn.files import alone, check_regular
from metalearn.signatures import checked

__all__ = ["torchvision_data"]

_LARGEST = 2**28  # bytes of a file; CIFAR-10's archive has 170 million
_FAULTS = (
    *DOWNLOAD_FAULTS, AssertionError, TypeError, EOFError, LookupError, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """A data set of torchvision: its class there, its shape and the official files below a root.

    ``read`` are patterns of all that torchvision may open there.
    """

    label: str
    shape: tuple[int, int, int]
    files: str
    read: tuple[str, ...]


_KINDS: Mapping[str, _Kind] = {
    "mnist": _Kind("MNIST", (1, 28, 28), "MNIST/raw/{train,t10k}-*-ubyte.gz", ("MNIST/*/*",)),
    "fashion_mnist": _Kind(
        "FashionMNIST",
        (1, 28, 28),
        "FashionMNIST/raw/{train,t10k}-*-ubyte.gz",
        ("FashionMNIST/*/*",),
    ),
    "cifar10": _Kind(
        "CIFAR10",
        (3, 32, 32),
        "cifar-10-python.tar.gz",
        ("cifar-10-python.tar.gz", "cifar-10-batches-py/*"),
    ),
}


@checked
def torchvision_data(
    name: Literal["mnist", "fashion_mnist", "cifar10"] = "mnist",
    *,
    root: str | Path | None = None,
    download: bool = True,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> ClassificationData:
    """MNIST, FashionMNIST or CIFAR-10, read, checked and downloaded by torchvision.

    The official test part is the test split; the validation split is a share of each class of the
    official training part. With ``download`` official archives that lie below ``root`` are
    unpacked, and only what is missing or damaged is fetched.

    Args:
        name: ``"mnist"``, ``"fashion_mnist"`` or ``"cifar10"``.
        root: the folder that torchvision is given, above ``MNIST``, ``FashionMNIST`` or
            ``cifar-10-batches-py``; None for ``metalearn.data.locations.data_folder()``.
        download: whether to unpack archives and download what is not there.
        validation_fraction: share of each class of the training part for validation.
        seed: of the division.

    Returns:
        inputs uint8 ``[70000, 1, 28, 28]``, or ``[60000, 3, 32, 32]`` for CIFAR-10; the training
        part comes first.

    Raises:
        SettingError: a setting that cannot work.
        DataError: the set is not there, damaged, or cannot be downloaded.

    Sources: LeCun et al., "Gradient-based learning applied to document recognition", 1998; Xiao et
    al., arXiv 1708.07747, 2017; Krizhevsky, "Learning multiple layers of features from tiny
    images", 2009.
    """
    if name not in _KINDS:
        raise SettingError("name", name, f"one of {', '.join(_KINDS)} is needed")
    check_fraction("validation_fraction", validation_fraction)
    kind = _KINDS[name]
    folder = data_folder() if root is None else Path(root).expanduser()
    with alone(folder / kind.label) if download else contextlib.nullcontext():
        inputs, targets, names = _part(kind, folder, train=True, download=download)
        test_inputs, test_targets, _ = _part(kind, folder, train=False, download=download)
    validation, train = divide_samples(
        targets, names=names, fractions=(validation_fraction,), seed=seed
    )
    test = torch.arange(len(test_targets)) + len(targets)
    return ClassificationData(
        torch.cat([inputs, test_inputs]),
        torch.cat([targets, test_targets]),
        names,
        {"train": train, "validation": validation, "test": test},
    )


def _part(
    kind: _Kind, folder: Path, *, train: bool, download: bool
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Pictures uint8 ``[N, C, H, W]``, targets ``[N]`` and class names of an official part."""
    from torchvision import datasets  # slow to import

    try:
        for path in (path for pattern in kind.read for path in folder.glob(pattern)):
            _check_file(path)
        with download_timeout(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of how the pickles of CIFAR-10 are made
            found = getattr(datasets, kind.label)(str(folder), train=train, download=download)
            return _arrays(kind, found)
    except _FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        more = "" if download else ", set download=true to fetch them"
        raise DataError(
            f"{kind.label} cannot be had from {folder} ({reason}): remove what is damaged there, "
            f"put the official {kind.files} there{more}, set root to the folder that has them, or "
            "use digits"
        ) from error


def _check_file(path: Path) -> None:
    """Refuse what torchvision would read without end; what it unpickles has its checksum."""
    try:
        check_regular(path, _LARGEST)
    except OSError as error:
        raise OSError(f"{path.name}: {error.strerror or error}") from error


def _arrays(kind: _Kind, found: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """What torchvision read, refused where the official files cannot have given it."""
    inputs, targets = torch.as_tensor(found.data), torch.as_tensor(found.targets)
    inputs = inputs.permute(0, 3, 1, 2).contiguous() if inputs.ndim == 4 else inputs.unsqueeze(1)
    names = tuple(found.classes)
    if tuple(inputs.shape[1:]) != kind.shape or len(inputs) != len(targets) or not len(targets):
        counts = f"pictures {list(inputs.shape)} and {len(targets)} labels"
        raise ValueError(f"{counts} do not make a part of {kind.label}")
    if not 0 <= int(targets.min()) <= int(targets.max()) < len(names):
        raise ValueError(f"labels beyond the {len(names)} classes")
    return inputs, targets.long(), names
