"""Checkpoints: written whole or not at all, read without pickle."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from metalearn.errors import DataError
from metalearn.files import replace_file

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, containers) to ``path`` atomically.

    The file is complete or absent, whatever interrupts: it is written beside its place, flushed to
    the disk, and moved there.
    """
    replace_file(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, tensors onto ``device``.

    Raises:
        DataError: no such file, or a file that is not a checkpoint.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such checkpoint")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: this file is not a readable checkpoint ({reason})") from error
    if not isinstance(state, dict):
        raise DataError(f"{path}: this file holds a {type(state).__name__}, not a checkpoint")
    return state
