"""Finds what a ``_target_`` names, in modules of the current folder too."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from metalearn.near_names import with_nearest

__all__ = ["found_object", "why_not"]


def found_object(place: str) -> Any:
    """What stands under a dotted name.

    A module that is not installed is looked for in the current folder, as ``python -m`` does. The
    folder comes last: nothing that is installed is replaced by a file of the same name.

    Raises:
        ImportError, AttributeError, ValueError, TypeError: as Hydra has it.
    """
    _look_here(place)
    logger = logging.getLogger(get_object.__module__)
    before, logger.disabled = logger.disabled, True  # it would say once more what cannot be found
    try:
        return get_object(place)
    finally:
        logger.disabled = before


def why_not(place: object, error: BaseException) -> str:
    """Why nothing was found there, in one sentence that goes on after ``no such class …``."""
    cause = error.__cause__ or error
    module, _, name = str(place).rpartition(".")
    first = module.partition(".")[0]
    if not first or not name:
        return ""
    if isinstance(cause, ModuleNotFoundError) and cause.name == first:
        return f": there is no {first}.py in {Path.cwd()}, and no such package is installed"
    if (isinstance(cause, AttributeError) and first in sys.modules) or (
        isinstance(cause, ModuleNotFoundError) and str(cause.name).startswith(f"{first}.")
    ):
        there = vars(sys.modules[module]) if module in sys.modules else {}
        known = [n for n, value in there.items() if isinstance(value, type)]
        return with_nearest(f": {module}{_from(first)} has no {name}", name, known)
    reason = (str(cause).splitlines() or [""])[0]
    return f": importing {first} fails ({type(cause).__name__}: {reason})"


def _from(name: str) -> str:
    """Where a module was imported from, where that is not what the current folder has."""
    file = getattr(sys.modules.get(name), "__file__", None)
    own = [path for path in (Path.cwd() / f"{name}.py", Path.cwd() / name) if path.exists()]
    if not own or (file is not None and Path(file).resolve().is_relative_to(own[0].resolve())):
        return ""
    where = f"imported from {file}" if file else "which is Python's own"
    return f", {where} and not from {own[0]} (another name would be found),"


def _look_here(place: object) -> None:
    first = str(place).partition(".")[0]
    here = os.getcwd()
    there = Path(here, f"{first}.py").is_file() or Path(here, first).is_dir()
    if not first.isidentifier() or not there or here in sys.path:
        return
    if first not in sys.modules and importlib.util.find_spec(first) is None:
        sys.path.append(here)
        importlib.invalidate_caches()
