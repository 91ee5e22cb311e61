"""A command as the job of a sweep, in whatever process a launcher has it run.

In a process of its own it finds what the process that a person started has set up: the command
line, folders to be taken away again, streams that may close, errors as one sentence.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.cli.error_messages import Ended, JobError, one_sentence_errors
from metalearn.cli.launching.launches import Launch, launched_by
from metalearn.cli.launching.signals import StoppedJobs, listen_as_job
from metalearn.cli.standard_streams import numbered_streams, tolerant_streams

__all__ = ["run_job"]

_stopped = StoppedJobs()


def run_job(found: Callable[[], Callable[[DictConfig], Any]], config: DictConfig) -> Any:
    """What a command returns; in a process that a launcher has started, as a job of its sweep.

    Args:
        found: imports the function of the command, which takes a while.
        config: composed, without its ``hydra`` node.

    Raises:
        JobError: in a process of its own, in place of all else: it can be sent to the first one.
    """
    launch = launched_by()
    if launch is None:
        return found()(config)
    number = int(HydraConfig.get().job.num)
    listen_as_job(_stopped)
    with numbered_streams(number), tolerant_streams(), _as_typed(launch), _logging_there():
        try:
            _stopped.busy = True
            if _stopped.received is not None:
                from metalearn.cli.run_folders import discard_unused  # with torch

                discard_unused(Path(HydraConfig.get().runtime.output_dir))
                raise SystemExit(128 + _stopped.received)
            with one_sentence_errors():
                return found()(config)
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else 1
            if code > 128:
                _stopped.received = _stopped.received or code - 128
            raise JobError(f"job {number}: {_reason(ending, code)}", code) from None
        except Exception as error:
            traceback.print_exc()
            raise JobError(f"job {number}: {type(error).__name__}: {error}", 1) from None
        finally:
            _stopped.busy = False


def _reason(ending: SystemExit, code: int) -> str:
    if isinstance(ending, Ended):
        return ending.sentence
    known = {128 + number: number.name for number in signal.Signals}
    return f"stopped by {known[code]}" if code in known else f"it ended with code {code}"


@contextmanager
def _as_typed(launch: Launch) -> Iterator[None]:
    """Have the record of a run see the command of the sweep, and know what of its folder is new."""
    from metalearn.cli.run_folders import also_missing  # with torch, which --help does without

    before, sys.argv = sys.argv, list(launch.command)
    also_missing(launch.missing)
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _logging_there() -> Iterator[None]:
    """Have what is logged to a stream go to standard output as it is now."""
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    before = [handler.setStream(sys.stdout) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before):
            if stream is not None:
                handler.setStream(stream)
