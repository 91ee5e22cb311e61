"""How the learning rate goes over a run, as a factor of the optimiser's own.

Steps s are counted from 0; there are S of them, and a schedule begins after W steps of warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args

from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole

__all__ = ["Schedule", "ScheduleSettings", "check_schedule", "cosine", "linear", "schedule_of"]

Schedule = Literal["cosine", "constant", "step", "linear", "one_cycle"]

_USED_BY = {
    "schedule_end": ("cosine", "linear", "one_cycle"),
    "schedule_every": ("step",),
    "schedule_factor": ("step",),
    "schedule_start": ("one_cycle",),
    "schedule_peak": ("one_cycle",),
}
"""By setting, the schedules that have a use for it."""
_FACTOR, _START, _PEAK = 0.1, 0.04, 0.3


class ScheduleSettings(Protocol):
    """What a schedule follows from; see `LoopSettings`, where each is described."""

    @property
    def steps(self) -> int:
        """S."""

    @property
    def warmup(self) -> int:
        """W."""

    @property
    def schedule(self) -> Schedule:
        """Its name."""

    @property
    def schedule_end(self) -> float:
        """Factor that a falling rate goes towards."""

    @property
    def schedule_every(self) -> int | None:
        """Steps between two drops."""

    @property
    def schedule_factor(self) -> float | None:
        """Factor of a drop."""

    @property
    def schedule_start(self) -> float | None:
        """Factor that a cycle begins with."""

    @property
    def schedule_peak(self) -> float | None:
        """Share of the steps at which a cycle is at its highest."""


def schedule_of(settings: ScheduleSettings) -> Callable[[int], float]:
    """Factor of the learning rate at a step s, at most 1.

    It rises as (s + 1) / (W + 1) over the warm-up. After it, with d = (s − W) / (S − W) in [0, 1)
    and E the ``schedule_end``:

    - ``"constant"``: 1;
    - ``"cosine"``: E + (1 − E) · (1 + cos π·d) / 2 (Loshchilov and Hutter, "SGDR: Stochastic
      Gradient Descent with Warm Restarts", ICLR 2017);
    - ``"linear"``: E + (1 − E) · (1 − d);
    - ``"step"``: f^⌊(s − W) / n⌋, f the ``schedule_factor``, n the ``schedule_every``;
    - ``"one_cycle"``, which has no warm-up beside it: a cosine from ``schedule_start`` up to 1 over
      the share p = ``schedule_peak`` of the steps, and one from 1 down to E over the rest (Smith
      and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
      Rates", 2019, with the cosines that fastai and torch have in place of lines).
    """
    after = _AFTER_WARMUP[settings.schedule](settings, settings.steps - settings.warmup)
    warmup = settings.warmup

    def rate(step: int) -> float:
        return (step + 1) / (warmup + 1) if step < warmup else after(step - warmup)

    return rate


def cosine(done: float, end: float = 0.0) -> float:
    """Half a wave from 1 to ``end`` while ``done`` goes from 0 to 1."""
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float, end: float = 0.0) -> float:
    """A line from 1 to ``end`` while ``done`` goes from 0 to 1."""
    return end + (1 - end) * (1 - done)


def check_schedule(settings: ScheduleSettings) -> None:
    """Refuse an unknown schedule, values out of range, and settings that it has no use for.

    Raises:
        SettingError: the first of them.
    """
    name, known = settings.schedule, get_args(Schedule)
    if name not in known:
        raise SettingError("schedule", name, f"one of {', '.join(known)} is needed")
    for setting, users in _USED_BY.items():
        value = getattr(settings, setting)
        if value is None:
            continue
        _check_value(setting, value)
        if value and name not in users:
            accepted = f"schedule={' or '.join(users)} is needed for it"
            raise SettingError(setting, value, accepted)
    if name == "one_cycle" and settings.warmup:
        accepted = "0 is needed beside schedule=one_cycle, which rises from schedule_start"
        raise SettingError("warmup", settings.warmup, accepted)


def _check_value(setting: str, value: Any) -> None:
    if setting == "schedule_every":
        check_whole(setting, value, 1, 2**63 - 1)
    elif setting in ("schedule_end", "schedule_peak"):
        check_number(setting, value, least=0, below=1)
    else:
        accepted = "a number above 0 and of at most 1 is needed"
        check_number(setting, value, above=0, accepted=accepted)
        if value > 1:
            raise SettingError(setting, value, accepted)


def _constant(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    return lambda step: 1.0


def _falling(
    shape: Callable[[float, float], float],
) -> Callable[[ScheduleSettings, int], Callable[[int], float]]:
    def made(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
        return lambda step: shape(step / steps, settings.schedule_end)

    return made


def _step(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    every = settings.schedule_every or math.ceil(steps / 3)
    factor = _FACTOR if settings.schedule_factor is None else settings.schedule_factor
    return lambda step: float(factor ** (step // every))


def _one_cycle(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    start = _START if settings.schedule_start is None else settings.schedule_start
    peak = steps * (_PEAK if settings.schedule_peak is None else settings.schedule_peak)

    def rate(step: int) -> float:
        if step < peak:
            return cosine(1 - step / peak, start)
        return cosine((step - peak) / (steps - peak), settings.schedule_end)

    return rate


_AFTER_WARMUP: Mapping[Schedule, Callable[[ScheduleSettings, int], Callable[[int], float]]] = {
    "cosine": _falling(cosine),
    "constant": _constant,
    "step": _step,
    "linear": _falling(linear),
    "one_cycle": _one_cycle,
}
