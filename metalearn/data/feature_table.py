"""Features of the pictures of a data set by a network that does not train, computed once.

Axes: N pictures, D features, R quarter turns (1 or 4), [channels, height, width] of a picture.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.core.checks import module_takes
from metalearn.core.memory import check_memory
from metalearn.data.locations import cache_folder
from metalearn.data.picture_files import PictureFiles
from metalearn.errors import DataError, SettingError
from metalearn.stretches import stretch

__all__ = ["FeatureTable", "feature_table"]

log = logging.getLogger(__name__)

_BATCH = 256  # pictures at a time
_TURNS = 4


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """The features of all pictures of a set, and the network that gave them.

    Attributes:
        values: float32 ``[R, N, D]``; R is 1, or 4 where pictures are turned by quarters too.
        network: in evaluation mode, on the CPU.
    """

    values: Tensor
    network: nn.Module

    @property
    def size(self) -> int:
        """D."""
        return self.values.shape[2]

    @torch.no_grad()
    def describe(self, pictures: Tensor) -> Tensor:
        """Features ``[N, D]`` of further pictures ``[N, C, H, W]`` in [0, 1]."""
        with module_takes("pictures", pictures):
            found: Tensor = self.network(pictures)
        return found


def feature_table(
    network: nn.Module, pictures: Tensor | PictureFiles, *, turned: bool, device: torch.device
) -> FeatureTable:
    """The features of pictures, from the cache folder where they have been computed before.

    There they stand under ``features/``, named by a checksum of network, weights and pictures.

    Args:
        network: maps pictures ``[N, C, H, W]`` in [0, 1] to features ``[N, D]``, each by itself.
        pictures: uint8 ``[N, C, H, W]``, which are divided by 255, also in files, or floats.
        turned: whether the quarter turns of each picture are described too.
        device: where to compute; the table stays on the CPU.

    Raises:
        SettingError: a network that gives no vectors.
        DataError: features that are not finite.
    """
    turns = _TURNS if turned else 1
    path = cache_folder() / "features" / f"{_checksum(network, pictures, turns)}.pt"
    values = _kept(path)
    if values is None:
        values = _computed(network, pictures, turns, device)
        save_checkpoint(path, {"features": values})
    return FeatureTable(values, network.cpu())


@torch.no_grad()
def _computed(
    network: nn.Module, pictures: Tensor | PictureFiles, turns: int, device: torch.device
) -> Tensor:
    """The table ``[R, N, D]``."""
    started = time.monotonic()
    network.to(device)
    rows: list[Tensor] = []
    starts = [(t, start) for t in range(turns) for start in range(0, len(pictures), _BATCH)]
    with stretch("features", len(pictures) * turns, "pictures") as tell:
        for turn, start in starts:
            batch = pictures[start : start + _BATCH].to(device)
            batch = batch.float().div(255) if batch.dtype == torch.uint8 else batch
            with module_takes("pictures", batch):
                found = network(torch.rot90(batch, turn, dims=(-2, -1)))
            if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(batch):
                shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise SettingError("frozen_features", shape, "a vector for each picture is needed")
            if not rows:
                size = found.shape[1]
                check_memory("frozen_features", size, 4 * size * len(pictures) * turns)
            rows.append(found.float().cpu())
            tell(len(batch))
    values = torch.cat(rows).view(turns, len(pictures), -1)
    if not bool(torch.isfinite(values).all()):
        raise DataError("the features of some pictures are not finite")
    seconds = time.monotonic() - started
    log.info(
        "%d features of %d pictures computed in %.1f s",
        values.shape[2],
        turns * len(pictures),
        seconds,
    )
    return values


def _kept(path: Path) -> Tensor | None:
    """What was computed before; None where nothing was, or the file is damaged."""
    if not path.is_file():
        return None
    try:
        found = load_checkpoint(path).get("features")
    except DataError as error:
        log.warning("%s; the features are computed anew", error)
        return None
    return found if isinstance(found, Tensor) and found.dim() == 3 else None


def _checksum(network: nn.Module, pictures: Tensor | PictureFiles, turns: int) -> str:
    """Of all that the features follow from."""
    found = hashlib.sha256(f"{network!r} {turns} {list(pictures.shape)}".encode())
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(_bytes(value))
    for start in range(0, len(pictures), _BATCH):
        found.update(_bytes(pictures[start : start + _BATCH]))
    return found.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
