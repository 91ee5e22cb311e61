"""Settings with a value for each member, and how many members are trained at a time.

Axes: M members.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from metalearn.core.ensemble.stacking import MemberEngine
from metalearn.core.memory import describe_bytes, peak_memory, synchronize
from metalearn.core.vectorization import VectorizationError
from metalearn.errors import SettingError
from metalearn.models import Dropout, Ensemble, Stack

__all__ = ["MemberPlan", "PerMember", "member_values", "plan_members", "set_dropout"]

PerMember = float | Sequence[float] | Mapping[str, float] | None
"""One value for all members, a list of M values, or ``{low: …, high: …}`` for M values in equal
ratios from one to the other."""

_WORKSPACE = 1.3  # what allocators and operations need beyond the tensors that are counted
_ROUNDS = 3
_CLEAR = 1.25  # how many times faster the loop has to be, so that no stopwatch's noise decides


def member_values(
    setting: str, value: PerMember, count: int, *, least: float = 0.0, below: float = math.inf
) -> list[float] | None:
    """A setting as M values in [least, below); None where it is not given.

    Raises:
        SettingError: a list of another length, a number out of range, something else.
    """
    if value is None:
        return None
    values: Any = value
    if isinstance(value, Mapping):
        if set(value) != {"low", "high"} or not all(
            _is_number(v) and v > 0 for v in value.values()
        ):
            raise SettingError(setting, dict(value), "low and high, both above 0, are needed")
        steps = torch.linspace(0, 1, count, dtype=torch.float64)
        values = (value["low"] * (value["high"] / value["low"]) ** steps).tolist()
    elif _is_number(value):
        values = [value] * count
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SettingError(setting, value, "a number, a list, or low and high are needed")
    if len(values) != count:
        raise SettingError(setting, list(values), f"{count} values are needed, one for each member")
    for number in values:
        if not _is_number(number) or not least <= number < below:
            top = "" if below == math.inf else f" and below {below:g}"
            raise SettingError(setting, number, f"a finite number of at least {least:g}{top}")
    return [float(number) for number in values]


def set_dropout(
    ensemble: Ensemble, seeds: Sequence[int], rates: Sequence[float] | None = None
) -> None:
    """Give every `Dropout` layer of each member a stream of masks that follows from its seed.

    Args:
        ensemble: whose layers are set.
        seeds: one for each member.
        rates: of all layers of each member; None leaves them.

    Raises:
        SettingError: rates for members without such a layer.
    """
    for stack in ensemble.stacks:
        assert isinstance(stack, Stack)
        layers = [layer for layer in stack.modules() if isinstance(layer, Dropout)]
        if rates is not None and not layers:
            accepted = "every member needs a metalearn.models.Dropout for it"
            raise SettingError("dropout", list(rates), accepted)
        streams = torch.tensor([seeds[i] for i in stack.indices]) * 65537
        for number, layer in enumerate(layers):
            layer.key.copy_(streams + number)
            if rates is not None:
                layer.p.copy_(torch.tensor([rates[i] for i in stack.indices]))


@dataclass(frozen=True)
class MemberPlan:
    """How members' gradients are taken."""

    engine: MemberEngine
    chunk_size: int | None
    """Members at a time; None is all."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for a log."""
        size = "all members at once" if self.chunk_size is None else f"{self.chunk_size} at a time"
        return "; ".join([f"members: engine {self.engine}, {size}", *self.notes])


def plan_members(
    attempt: Callable[[MemberEngine, int], object],
    count: int,
    *,
    engine: str,
    chunk_size: int | None,
    memory: int | None,
    device: torch.device,
    deterministic: bool = False,
) -> MemberPlan:
    """Choose batched, or loop where that is clearly faster, and the most members that fit at once.

    The two give the same gradients but for rounding. A stopwatch would decide a near-tie by
    chance, and two equal runs would differ: loop has to be 1.25 times as fast.

    Args:
        attempt: takes the gradients of the first so many members by an engine.
        count: M.
        engine: ``"auto"``, or what was asked for.
        chunk_size: what was asked for.
        memory: bytes that gradients may take; None leaves memory out of it.
        device: where.
        deterministic: take batched untimed, and count the bytes of tensors on every device.

    Raises:
        SettingError: not even one member fits.
    """
    notes = []
    if engine == "auto":
        reason = _refusal_of_batched(attempt)
        if reason:
            engine = "loop"
            notes.append(f"vmap cannot take the networks: {reason}")
    if memory is not None and chunk_size is None:
        tried: MemberEngine = "loop" if engine == "loop" else "batched"
        one, two = (
            peak_memory(partial(attempt, tried, n), device, counted=deterministic)
            for n in (1, min(2, count))
        )
        each = max(two - one, 1) if count > 1 else one
        need = [_WORKSPACE * (one + each * (n - 1)) for n in range(1, count + 1)]
        fits = sum(amount <= memory for amount in need)
        if fits == 0:
            least = describe_bytes(need[0])
            raise SettingError("memory", describe_bytes(memory), f"at least {least} is needed")
        notes.append(f"about {describe_bytes(need[fits - 1])}")
        if fits < count:
            chunk_size = math.ceil(count / math.ceil(count / fits))
            notes.append(f"all would need {describe_bytes(need[-1])} of {describe_bytes(memory)}")
    if engine == "auto" and deterministic:
        notes.insert(0, "nothing measured: deterministic")
    elif engine == "auto":
        batched, loop = _seconds(attempt, ("batched", "loop"), chunk_size or count, device)
        engine = "loop" if loop * _CLEAR < batched else "batched"
        why = f"{'' if engine == 'loop' else 'not '}{_CLEAR} times as fast in the loop"
        notes.insert(
            0, f"measured: batched {1e3 * batched:.3g} ms, loop {1e3 * loop:.3g} ms, {why}"
        )
    return MemberPlan("loop" if engine == "loop" else "batched", chunk_size, tuple(notes))


def _refusal_of_batched(attempt: Callable[[MemberEngine, int], object]) -> str:
    """Why a loop is needed; empty where batched works."""
    try:
        attempt("batched", 1)
    except VectorizationError as error:
        return error.reason
    return ""


def _seconds(
    attempt: Callable[[Any, int], object],
    engines: Sequence[str],
    count: int,
    device: torch.device,
) -> list[float]:
    """The shortest of a few runs of each, in turns, after one that does not count."""
    found: list[list[float]] = [[] for _ in engines]
    for _ in range(1 + _ROUNDS):
        for engine, spent in zip(engines, found):
            start = time.perf_counter()
            attempt(engine, count)
            synchronize(device)
            spent.append(time.perf_counter() - start)
    return [min(spent[1:]) for spent in found]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
