"""Steps of a training, timed as one process takes them or several ranks together.

Axes: R ranks.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from metalearn.errors import RankError, SettingError
from metalearn.ranks import Ranks
from metalearn.trainers import Trainer
from metalearn.trainers.loop.protocols import Callback, Training

__all__ = ["QUIET", "refused", "step_times", "turn"]

_FIRST = 4
"""Steps at the begin of a turn that do not count, where there are more."""
QUIET: dict[str, Any] = {"compile": "never", "progress": False, "log_every": 10**6}
"""Settings of a trainer whose steps are timed: ranks do not compile theirs."""


class _Enough(Exception):
    """Steps enough were timed."""


class _Clock(Callback):
    """When steps ended; ends the training after so many, or so many seconds."""

    def __init__(self, most: int, seconds: float) -> None:
        self.ends: list[float] = []
        self._most, self._seconds = most, seconds

    def after_update(self, loop: Training) -> None:
        self.ends.append(time.perf_counter())
        over = self.ends[-1] - self.ends[0] > self._seconds
        if len(self.ends) >= self._most or (over and len(self.ends) > 2):
            raise _Enough


def step_times(
    trainer: Trainer, ranks: Ranks, *, most: int = 10**6, seconds: float = float("inf")
) -> dict[str, float]:
    """Train, and say what a step took.

    Args:
        trainer: new, of `QUIET` settings; its steps end the training, if neither limit has.
        ranks: that it was made with.
        most: steps to take, at least 2.
        seconds: after which none is begun, for a process by itself.

    Returns:
        Medians over steps: seconds of a ``"step"`` and of its ``"meeting"``, bytes ``"sent"`` to
        it; and how many ``"steps"`` were taken.
    """
    clock, spent, sent = _Clock(most, seconds), [0.0], [0]
    inner = ranks.sums

    def sums(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = time.perf_counter()
        found = inner(values)
        spent.append(time.perf_counter() - start)
        sent.append(sum(value.numel() * value.element_size() for value in values.values()))
        return found

    if ranks.count > 1:
        ranks.sums = sums  # type: ignore[method-assign]
    trainer.loop.callbacks = (*trainer.loop.callbacks, clock)
    with suppress(_Enough):
        trainer.fit()
    steps = [end - begin for begin, end in zip(clock.ends, clock.ends[1:])]
    return {
        "step": statistics.median(steps[_FIRST:] or steps[-1:]),
        "meeting": statistics.median(spent[1 + _FIRST :] or [0.0]),
        "sent": statistics.median(sent[1:] or [0]),
        "steps": len(clock.ends),
    }


def refused(error: SettingError) -> dict[str, Any]:
    """What a rank prints in place of numbers where a setting has no use for so many ranks."""
    return {"setting": error.setting, "value": str(error.value), "accepted": error.accepted}


def turn(code: str, ranks: int, threads: int, groups: int = 1) -> list[dict[str, float]]:
    """What the first rank of each of so many groups printed, which train at the same time.

    Args:
        code: Python that takes part as one of the ranks that the environment tells of.
        ranks: R of a group.
        threads: of each.
        groups: that share nothing.

    Raises:
        SettingError: they were `refused`.
        RankError: the first printed nothing.
    """
    started: list[list[subprocess.Popen[bytes]]] = []
    try:
        for _ in range(groups):
            started.append(_started(code, ranks, threads))
        outputs = [[process.communicate()[0] for process in group] for group in started]
        for group in started:
            for rank, process in enumerate(group):
                if process.returncode:
                    raise RankError(f"rank {rank} of {ranks} ended before it had timed its steps")
        found = [_last_line(first) for first, *_ in outputs]
    finally:
        for process in (process for group in started for process in group):
            process.kill()  # what has ended is left alone
    for numbers in found:
        if "accepted" in numbers:
            raise SettingError(numbers["setting"], numbers["value"], numbers["accepted"])
    return found


def _last_line(printed: bytes) -> dict[str, Any]:
    """The numbers that a rank printed last; a network of a user's own may have printed before.

    Raises:
        RankError: there are none.
    """
    try:
        found = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise RankError("rank 0 ended before it had timed its steps") from error
    numbers: dict[str, Any] = found
    return numbers


def _started(code: str, ranks: int, threads: int) -> list[subprocess.Popen[bytes]]:
    """The processes of a training."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    known = {
        **os.environ, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
