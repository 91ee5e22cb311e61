"""States of a run and the stand of a walk back through it, in files: memory stays flat.

Nothing is unpickled: files are read by torch's loader of weights.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import torch

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.core import HyperProgress
from metalearn.core.checks import check_number
from metalearn.errors import DataError
from metalearn.signatures import checked

__all__ = ["StatesOnDisk", "WalkCheckpoint"]


class StatesOnDisk(MutableMapping[int, Any]):
    """States by step, a file each: the ``kept`` of `metalearn.core.hyper_gradient`.

    Args:
        folder: of the files ``state-<k>.pt``, made if missing; those that are there are states.
        device: where states are put when they are read.
    """

    @checked
    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = Path(folder), device
        self.folder.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, step: int, state: Any) -> None:
        """Write a state, whole or not at all."""
        save_checkpoint(self._path(step), {"state": state})

    def __getitem__(self, step: int) -> Any:
        """Read a state.

        Raises:
            KeyError: there is none of this step.
            DataError: a file that holds no state.
        """
        if not self._path(step).is_file():
            raise KeyError(step)
        found = load_checkpoint(self._path(step), device=self.device)
        if "state" not in found:
            raise DataError(f"{self._path(step)}: this file holds no state of a run")
        return found["state"]

    def __delitem__(self, step: int) -> None:
        """Remove a state's file."""
        if not self._path(step).is_file():
            raise KeyError(step)
        self._path(step).unlink()

    def __iter__(self) -> Iterator[int]:
        """Steps, in order."""
        found = (re.fullmatch(r"state-(\d+)\.pt", path.name) for path in self.folder.iterdir())
        return iter(sorted(int(match[1]) for match in found if match))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _path(self, step: int) -> Path:
        return self.folder / f"state-{step}.pt"


class WalkCheckpoint:
    """Saves where a gradient through a run stands, now and then: its ``progress``.

    Args:
        path: of the file.
        seconds: between two of them, at least.
        tell: told of every step too.
    """

    @checked
    def __init__(
        self,
        path: str | Path,
        *,
        seconds: float = 60.0,
        tell: Callable[[HyperProgress], Any] | None = None,
    ) -> None:
        check_number("seconds", seconds, least=0)
        self.path, self.seconds, self.tell = Path(path), seconds, tell
        self._last = time.monotonic()

    def __call__(self, progress: HyperProgress) -> None:
        """Save what is due."""
        if time.monotonic() - self._last >= self.seconds:
            save_checkpoint(self.path, progress.snapshot())
            self._last = time.monotonic()
        if self.tell is not None:
            self.tell(progress)

    def snapshot(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """What was saved, for ``resume``; None where nothing was.

        Raises:
            DataError: a file that is none.
        """
        return load_checkpoint(self.path, device=device) if self.path.is_file() else None

    def remove(self) -> None:
        """The gradient is there: the file has no more use."""
        self.path.unlink(missing_ok=True)
