"""Files from the network: gone on with where they broke off, held to a checksum, or not there.

Axes: none.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from metalearn.data.transfer import SECONDS, RemoteFile, Transfer, digest_of, remove_part
from metalearn.errors import DataError
from metalearn.files import alone, check_regular, lock

__all__ = ["DOWNLOAD_FAULTS", "RemoteFile", "download", "download_timeout", "fetched"]

DOWNLOAD_FAULTS = (OSError, RuntimeError, ValueError, http.client.HTTPException)
"""What a download that fails raises, torchvision's included."""


def download(remote: RemoteFile, path: Path) -> Path:
    """Have the file at ``path``: it appears there when it is whole and its checksum fits.

    What has arrived is kept beside it as ``.name.part`` when a connection ends, also that of a
    process that was killed. The same call, or a later one, asks for the rest alone, if the server
    still has the same file (``If-Range``), and starts over where it has another one or gives no
    parts. A file that is there already is read once for its checksum, and nothing is fetched. One
    process fetches it, others wait for that (`metalearn.files.alone`).

    Raises:
        DataError: the file there is another one, the server has another one or a larger one, it
            cannot be reached or ends the connection, or another process fetches it where there is
            no waiting.
        OSError: the disk refuses.
    """
    if urllib.parse.urlsplit(remote.url).scheme not in ("http", "https"):
        raise DataError(f"{remote.url}: an address of http or https is needed")
    if path.exists():
        return _checked(remote, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path):
        return _checked(remote, path) if path.exists() else _download(remote, path)


def fetched(remote: RemoteFile, path: Path, *, title: str, allowed: bool) -> Path:
    """`download`, where it is allowed, of a data set's archive, or what else can be done.

    Raises:
        DataError: the archive cannot be had or may not be fetched.
    """
    reason = "download=False"
    if allowed:
        try:
            return download(remote, path)
        except DOWNLOAD_FAULTS as error:
            reason = f"the download failed: {error}"
    raise DataError(
        f"{title} is not in {path.parent} ({reason}): put the official {path.name} there, or set "
        "root to what has it"
    )


@contextlib.contextmanager
def download_timeout() -> Iterator[None]:
    """A network that swallows everything must not hang the run; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(remote: RemoteFile, path: Path) -> Path:
    part = path.with_name(f".{path.name}.part")
    with part.open("ab") as file:
        held = lock(file)
        if held is False:
            raise DataError(f"{path} is being downloaded by another process")
        if path.exists():  # whoever had the lock was faster, and ``file`` may now be ``path``
            remove_part(part)
            return _checked(remote, path)
        try:
            Transfer(remote, file, part).run()
        except BaseException:
            if not file.tell():
                remove_part(part)
            raise
        os.fsync(file.fileno())
        if held is None:
            file.close()  # Windows gives no open file another name
        part.replace(path)
        remove_part(part)
    return path


def _checked(remote: RemoteFile, path: Path) -> Path:
    """A file that is there, if it is the one that is meant."""
    try:
        check_regular(path, remote.largest)
        found = digest_of(remote, path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != remote.checksum:
        raise DataError(
            f"{path}: its checksum is {found}, that of the file that is meant {remote.checksum}; "
            "remove it, and it is fetched"
        )
    return path
