"""The progress bar: one line on a terminal, elsewhere a line of the log now and then.

Axes: none; the bar of a training counts outer steps, that of a stretch whatever it is made of.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import starmap
from types import TracebackType
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from metalearn.percent import decimals, is_accuracy, percent
from metalearn.stretches import Tell

__all__ = ["Progress", "shown_stretch"]

log = logging.getLogger(__name__)

_FORMAT = (
    "{desc}{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{unit} "
    "[{elapsed}, {remaining} left]{postfix}"
)
_WAIT = 2.0
"""Seconds that a stretch may take without being shown."""


class Progress:
    """A bar with the newest numbers behind it and the time left; a context manager.

    Where the stream is no terminal, a line of the log says the same every half minute instead. The
    bar is silent from when on the stream takes nothing more.

    Args:
        total: steps of the whole run.
        initial: steps already done, when a run is resumed; the time left counts only new ones.
        enabled: show the bar; None shows it if ``stream`` is a terminal.
        stream: where to draw; standard error if None.
        interval: seconds between two drawings, at least.
        log_interval: seconds between two lines of the log, at least, where ``enabled`` is None and
            the stream is no terminal.
        what: that is done, of a stretch: it is shown once it has taken two seconds, and goes when
            it is done. Empty of a training.
        unit: what ``total`` counts, of a stretch.
        say: takes the lines; the log by default.
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        *,
        enabled: bool | None = None,
        stream: TextIO | None = None,
        interval: float = 0.25,
        log_interval: float = 30.0,
        what: str = "",
        unit: str = "",
        say: Callable[[str], None] = log.info,
    ) -> None:
        self._what, self._unit, self._say = what, unit and f" {unit}", say
        self._total, self._initial, self._done = total, initial, initial
        self._every = math.inf if enabled is not None else log_interval
        self._began = self._told = time.monotonic()
        self._stream = sys.stderr if stream is None else stream
        wanted = _is_terminal(self._stream) if enabled is None else enabled
        self.enabled = wanted and self._stream is not None  # it is None where it was closed
        # A disabled tqdm would still start its watcher thread: make none at all.
        self._bar: tqdm[None] | None = None
        self._logging: AbstractContextManager[None] | None = None
        if self.enabled:
            with suppress(OSError):
                self._bar = tqdm(
                    total=total,
                    initial=initial,
                    desc=what and f"{what}: ",
                    unit=self._unit,
                    leave=not what,
                    delay=_WAIT if what else 0.0,
                    file=self._stream,
                    bar_format=_FORMAT,
                    mininterval=interval,
                    miniters=1,
                    **_screen(self._stream),
                )

    def update(self, n: int = 1, **numbers: float) -> None:
        """Advance by ``n`` steps and show ``numbers`` behind the bar.

        ``loss=0.51234`` shows as ``loss 0.512``, ``accuracy=0.873`` (any name with "accuracy") as
        ``accuracy 87.3 %``, ``tasks_per_s=1234.5`` as ``tasks/s 1.23k``. The line is redrawn at
        most once an interval; numbers stay until others replace them.
        """
        self._done += n
        if self._bar is None:
            self._tell(numbers)
            return
        if numbers:
            text = ", ".join(_show(name, value) for name, value in numbers.items())
            self._bar.set_postfix_str(text, refresh=False)
        try:
            self._bar.update(n)
        except OSError:
            self._give_up()

    def _tell(self, numbers: Mapping[str, float]) -> None:
        """A line of the log, where the last one is long ago: steps, the time left, the numbers."""
        now = time.monotonic()
        if now - self._told < self._every or self._done >= self._total:
            return
        self._told = now
        left = (now - self._began) / max(1, self._done - self._initial) * (self._total - self._done)
        shown = [f"{tqdm.format_interval(left)} left", *starmap(_show, numbers.items())]
        what = f"{self._what}: " if self._what else "step "
        self._say(f"{what}{self._done}/{self._total}{self._unit}: {', '.join(shown)}")

    def write(self, text: str) -> None:
        """Print a line above the bar; nothing when the bar is off."""
        if self._bar is not None:
            with suppress(OSError):
                tqdm.write(text, file=self._stream)

    def close(self) -> None:
        """Draw the last state and leave the line; a second call does nothing."""
        try:
            if self._bar is not None:
                if not self._what:
                    self._bar.refresh()
                self._bar.close()
                self._bar = None
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Nobody reads the stream any more, which is no reason to end what the bar shows."""
        if self._bar is not None:
            self._bar.disable = True
            self._bar = None

    def __enter__(self) -> Progress:
        if self._bar is not None:  # log lines go above the bar instead of through it
            self._logging = logging_redirect_tqdm()
            self._logging.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self._logging is not None:
            self._logging.__exit__(kind, error, trace)
            self._logging = None


@contextmanager
def shown_stretch(
    what: str,
    total: int,
    unit: str,
    *,
    enabled: bool | None = None,
    say: Callable[[str], None] = log.info,
) -> Iterator[Tell]:
    """Show how far a stretch is: a `metalearn.stretches.Watcher` by its first three arguments.

    Args:
        what: is done.
        total: how much there is of it.
        unit: what ``total`` counts.
        enabled: as of `Progress`.
        say: as of `Progress`.
    """
    with Progress(total, enabled=enabled, what=what, unit=unit, say=say) as bar:
        yield bar.update


def _is_terminal(stream: TextIO | None) -> bool:
    # Windowed programs have no standard error at all; a closed stream raises ValueError.
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _screen(stream: TextIO) -> dict[str, int | bool]:
    """How large the terminal is, for tqdm: some that programs make say they have no columns."""
    with suppress(OSError, ValueError):
        if os.get_terminal_size(stream.fileno()).columns < 1:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


def _show(name: str, value: float) -> str:
    label = name.replace("_per_", "/").replace("_", " ")
    return f"{label} {percent(value) if is_accuracy(name) else _compact(value)}"


def _compact(value: float) -> str:
    value = float(value)
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if size <= abs(value) < 1e9:
            return f"{value / size:.3g}{unit}"
    return decimals(value, ".3g")
