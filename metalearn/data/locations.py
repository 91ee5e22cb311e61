"""Where data sets and caches lie."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder", "data_folder"]


def data_folder() -> Path:
    """The folder where data sets live: ``METALEARN_DATA``, or ``~/.cache/metalearn/data``."""
    named = os.environ.get("METALEARN_DATA")
    return Path(named).expanduser() if named else _home() / "data"


def cache_folder() -> Path:
    """The folder for what is computed once: ``METALEARN_CACHE``, or ``~/.cache/metalearn``."""
    named = os.environ.get("METALEARN_CACHE")
    return Path(named).expanduser() if named else _home()


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "metalearn"
