"""What a job of a sweep is told that runs in a process of its own.

Launchers take Hydra's singletons along to where their jobs run; what a process has found out or set
up by itself goes the same way.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Collection
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.types import RunMode

from metalearn.cli.own_settings import typed_words

__all__ = ["Launch", "is_of_sweep", "launched_by", "note_launch", "number_of_job"]

_ONCE = secrets.token_hex(8)


class Launch(metaclass=Singleton):
    """Of a sweep, from the process that a person started.

    Attributes:
        process: a name that no other process has.
        command: as it was typed.
        missing: folders, and logs in them, that were not there when the command began.
    """

    def __init__(self) -> None:
        self.process = _own_name()
        self.command = list(sys.argv)
        self.missing: frozenset[Path] = frozenset()


def note_launch(missing: Collection[Path]) -> None:
    """Note what jobs are told, whatever launcher will start them.

    Args:
        missing: see `Launch`.
    """
    launch = Launch()
    launch.process, launch.command = _own_name(), typed_words()
    launch.missing = frozenset(missing)


def launched_by() -> Launch | None:
    """The sweep that this process was started for; None in the process that a person started."""
    launch = Singleton._instances.get(Launch)
    if not isinstance(launch, Launch) or launch.process == _own_name():
        return None
    return launch


def is_of_sweep() -> bool:
    """Whether what runs is a job of a sweep, in whatever process."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def number_of_job() -> int | None:
    """The number of the job that runs in a process of its own; None elsewhere."""
    return int(HydraConfig.get().job.num) if launched_by() is not None else None


def _own_name() -> str:
    return f"{_ONCE}-{os.getpid()}"
