"""``resume=auto``: the same command starts a run, and goes on with it where it was broken off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from metalearn.errors import DataError, SettingError
from metalearn.files import read_regular

__all__ = ["with_run_found"]

_AUTO = "resume=auto"
_FOLDER = "hydra.run.dir"
_SWEEP = ("-m", "--multirun")
_FREE = ("device", "test_tasks", "tracker", "trust")
_LARGEST = 2**20  # bytes of a record of where a run comes from


def with_run_found(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the run in ``hydra.run.dir`` to go on with in place of ``auto``.

    Where there is no run yet they start one.

    Raises:
        SettingError: no folder beside it, a sweep, or a run that another command has started.
    """
    given = list(arguments)
    if _AUTO not in given:
        return given
    if any(word in _SWEEP for word in given):
        accepted = f"no sweep ({' or '.join(_SWEEP)}) is needed beside it: one run goes on"
        raise SettingError("resume", "auto", accepted)
    folders = [word.partition("=")[2] for word in given if word.startswith(f"{_FOLDER}=")]
    if not folders or not folders[-1]:
        raise SettingError("resume", "auto", f"{_FOLDER}=<folder of the run> is needed beside it")
    rest = [word for word in given if word != _AUTO]
    folder = Path(folders[-1])
    if not (folder / "config.yaml").is_file():
        return rest
    kept, began = _kept(rest), _kept(_command(folder))
    if sorted(kept) != sorted(began):
        accepted = f"the settings that {folder} was started with are needed: {' '.join(began)}"
        raise SettingError("resume=auto beside", " ".join(kept), accepted)
    return [*(w for w in rest if not w.startswith(f"{_FOLDER}=")), f"resume={folder}"]


def _kept(words: Sequence[str]) -> list[str]:
    """Those that a run keeps: all but its length and cadence, where it is, and how it is shown."""
    free = [*(f"{name}=" for name in _FREE), "trainer.", "hydra", "resume=", "-"]
    return [word for word in words if not word.startswith(tuple(free))]


def _command(folder: Path) -> list[str]:
    """What a run was started with.

    Raises:
        DataError: that is not known.
    """
    path = folder / "provenance.json"
    try:
        words = json.loads(read_regular(path, _LARGEST))["command"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: it does not say which command has started the run") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{path}: it does not say which command has started the run")
    return words[1:]
