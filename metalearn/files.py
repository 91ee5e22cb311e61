"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["replace_file"]


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path``.

    A reader sees the old file or the new one, never a part, whatever ends the process; if ``write``
    raises, the old file stays and the temporary one is removed. The folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are closed to others, whatever the umask says.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o777)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
