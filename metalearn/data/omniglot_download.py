"""Omniglot's two archives from the network, whole or not at all.

Axes: none.
"""

from __future__ import annotations

from pathlib import Path

from metalearn.data.downloads import DOWNLOAD_FAULTS, RemoteFile, download
from metalearn.data.omniglot_layout import ALPHABETS
from metalearn.data.omniglot_source import parts_in
from metalearn.errors import DataError

__all__ = ["ARCHIVES", "fetch"]

ARCHIVES = " and ".join(f"{part}.zip" for part in ALPHABETS)
_LARGEST = 2**26  # bytes of an archive; they have 10 and 6 million


def fetch(folder: Path, *, allowed: bool) -> dict[str, Path]:
    """Download what is missing; part name to archive.

    Address and MD5 sums are torchvision's. An archive appears under its name only when it is
    whole; one that breaks off is gone on with by the next call.

    Raises:
        DataError: the archives cannot be had or may not be fetched; it names three ways to go on.
    """
    reason = "download=False"
    if allowed:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part in ALPHABETS:
                if part not in parts_in(folder):
                    _download(part, folder)
            return parts_in(folder)
        except DOWNLOAD_FAULTS as error:
            reason = f"the download failed: {error}"
    raise DataError(
        f"Omniglot is not in {folder} ({reason}): put the archives {ARCHIVES} into {folder}, "
        "set root to the folder that has them, or use glyphs"
    )


def _download(part: str, folder: Path) -> None:
    from torchvision.datasets import Omniglot  # slow to import, and seldom needed

    url, md5 = f"{Omniglot.download_url_prefix}/{part}.zip", Omniglot.zips_md5[part]
    download(RemoteFile(url, f"md5:{md5}", _LARGEST), folder / f"{part}.zip")
