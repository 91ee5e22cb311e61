"""Checkpoints: written whole or not at all, read without pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from metalearn.errors import DataError, SettingError
from metalearn.files import replace_file
from metalearn.signatures import checked

__all__ = ["load_checkpoint", "save_checkpoint"]

_LONGEST = 200  # characters of a reader's reason that a sentence repeats


@checked
def save_checkpoint(path: Path, state: dict[str, Any], *, make_folder: bool = True) -> None:
    """Write ``state`` (tensors, numbers, strings, containers) to ``path`` atomically.

    The file is complete or absent, whatever interrupts: it is written beside its place, flushed to
    the disk, and moved there. Its folder is made if missing, unless ``make_folder`` is false.

    Raises:
        OSError: what the system refuses, such as a full disk, with ``path`` as its file.
    """

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides it behind a check of its own
                raise error.__context__ from None
            raise

    if not Path(path).name:
        raise SettingError("path", str(path), "the name of a file is needed")
    replace_file(Path(path), write, make_folder=make_folder)


@checked
def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, tensors onto ``device``.

    Raises:
        DataError: no such file, or a file that is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            damaged = archive.testzip()  # torch itself does not look at the checksums
        state = None if damaged else torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # readers of foreign bytes stumble in many ways
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise DataError(
            f"{path}: this file is not a readable checkpoint ({reason[:_LONGEST]})"
        ) from error
    if damaged:
        raise DataError(f"{path}: this checkpoint is damaged, its checksums do not fit")
    if not isinstance(state, dict):
        raise DataError(f"{path}: this file holds a {type(state).__name__}, not a checkpoint")
    return state


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what `save_checkpoint` cannot have written, before torch or zlib goes by its word."""
    # torch stores without compressing: what claims more could be inflated without end.
    if sum(member.file_size for member in archive.infolist()) > size:
        raise zipfile.BadZipFile("its members claim more bytes than it has")
    # torch would hand TorchScript, which is code, on to another loader.
    if any(name.endswith("constants.pkl") for name in archive.namelist()):
        raise zipfile.BadZipFile("it is TorchScript")
