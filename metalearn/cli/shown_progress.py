"""How far a command is, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.cli.given_settings import plain_value
from metalearn.cli.processes import ranks_of_command
from metalearn.stretches import watched_by

__all__ = ["shown_progress", "wanted"]

_SETTINGS = ("progress", "trainer.progress")


def wanted(config: DictConfig) -> bool | None:
    """What a command's configuration says of progress: True, False, or None for a terminal."""
    found = (plain_value(OmegaConf.select(config, name)) for name in _SETTINGS)
    return next((value for value in found if isinstance(value, bool)), None)


@contextmanager
def shown_progress(enabled: bool | None) -> Iterator[None]:
    """A block whose long stretches are shown, by the first of several ranks.

    Args:
        enabled: show a bar; None shows it on a terminal, and elsewhere a line every half minute.
    """
    from metalearn.tracking.progress import shown_stretch  # with torch, which --help does without

    first = ranks_of_command().rank == 0
    with watched_by(partial(shown_stretch, enabled=enabled if first else False, say=_say)):
        yield


def _say(line: Any) -> None:
    """To the log of a command that keeps one, else to standard error."""
    log = logging.getLogger(__name__)
    if log.hasHandlers() and log.isEnabledFor(logging.INFO):
        log.info("%s", line)
    else:
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
