"""Weights as they stand in files: checkpoints of runs, ``state_dict``s, safetensors.

Axes: none.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.checkpoint import load_checkpoint
from metalearn.errors import DataError, SettingError
from metalearn.signatures import checked

__all__ = ["SavedWeights", "check_source", "read_weights"]

_WRAPPERS = ("module", "state_dict", "model")
"""Under which a file may hold the ``state_dict``; the first is that of our checkpoints."""
_LONGEST = 200  # characters of a reader's reason that a sentence repeats


@dataclass(frozen=True)
class SavedWeights:
    """What a file holds of a network."""

    path: Path
    """The file."""
    entries: Mapping[str, Tensor]
    """The ``state_dict``."""
    learnt: Mapping[str, Tensor]
    """Of a run, what was learnt beside the weights, such as inner step sizes: ``learnt.lr``."""
    sha256: str
    """Of the file."""

    @property
    def origin(self) -> dict[str, str]:
        """What tells later where they came from."""
        return {"path": str(self.path), "sha256": self.sha256}


@checked
def read_weights(source: str | Path) -> SavedWeights:
    """The weights in a file, or those of a run's folder at its best; nothing is unpickled.

    Args:
        source: the folder of a run; or a file of ``torch.save``: a checkpoint, or the
            ``state_dict`` of a module, which may stand under ``state_dict`` or ``model``; or a
            file that ends in ``.safetensors``.

    Raises:
        SettingError: nothing there.
        DataError: a file that holds no weights, or some that are not finite.
    """
    path = check_source("source", source)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if _HASHES else _sha256(file)
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    learnt = state.get("learnt", {}) if "version" in state else {}
    found = next((state[n] for n in _WRAPPERS if isinstance(state.get(n), Mapping)), state)
    for entries in (found, learnt):
        _check_entries(path, entries)
    return SavedWeights(path, found, {f"learnt.{n}": v for n, v in learnt.items()}, digest)


def check_source(setting: str, source: object) -> Path:
    """The file that ``source`` names, itself or by the folder of a run.

    Raises:
        SettingError: nothing there; ``setting`` names it.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise SettingError(setting, source, "the folder of a run, or a file of weights, is needed")
    path = Path(source)
    if path.is_dir():
        best = path / "checkpoints" / "best.pt"
        if not best.is_file():
            accepted = "this folder has no checkpoints/best.pt; the name of a file is needed"
            raise SettingError(setting, str(source), accepted)
        return best
    if not path.is_file():
        accepted = "there is nothing; the folder of a run, or a file of weights, is needed"
        raise SettingError(setting, str(source), accepted)
    return path


_HASHES = hasattr(hashlib, "file_digest")  # from Python 3.11


def _sha256(file: Any) -> str:
    found = hashlib.sha256()
    while block := file.read(2**20):
        found.update(block)
    return found.hexdigest()


def _torch_file(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote; before torch 1.6 that was no zip archive."""
    if zipfile.is_zipfile(path):
        return load_checkpoint(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers of foreign bytes stumble in many ways
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise DataError(f"{path}: this file holds no weights ({reason[:_LONGEST]})") from error
    if not isinstance(state, dict):
        raise DataError(f"{path}: this file holds a {type(state).__name__}, not a state_dict")
    return state


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        needed = "safetensors is needed to read it: pip install 'torch-metalearn[safetensors]'"
        raise DataError(f"{path}: {needed}") from error
    try:
        found: dict[str, Any] = load_file(path)
    except Exception as error:  # the library's own kind of error, or the system's
        reason = str(error).partition("\n")[0][:_LONGEST]
        raise DataError(f"{path}: this file holds no safetensors ({reason})") from error
    return found


def _check_entries(path: Path, entries: Any) -> None:
    """Refuse what is no ``state_dict`` of finite tensors."""
    if not isinstance(entries, Mapping) or not all(isinstance(n, str) for n in entries):
        raise DataError(f"{path}: this file holds no state_dict, names with tensors")
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            what = f"{name} in it is a {type(value).__name__}, not a tensor"
            raise DataError(f"{path}: this file holds no state_dict: {what}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"{path}: {name} has numbers that are not finite")
