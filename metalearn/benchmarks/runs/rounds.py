"""A race: entrants take turns, round by round, each in a process of its own.

Times are processor time, which other work on the machine disturbs little.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metalearn.attribution import rank_correlations
from metalearn.benchmarks.processes import AskedProcess
from metalearn.benchmarks.runs.entrants import Race
from metalearn.benchmarks.runs.races import RACES

__all__ = ["Finish", "agreement", "raced"]

_LONG = 20.0  # seconds of a run that is not repeated


@dataclass
class Finish:
    """How one entrant fared on one problem; NaN is what is not known."""

    entrant: str
    seconds: float = math.nan
    """Median over rounds."""
    ratio: float = math.nan
    """Median over rounds of time ÷ that of the entrant that it stands beside."""
    memory: float = math.nan
    """Peak bytes above those after the imports."""
    error: float = math.nan
    """What its result is off by, or how it ranks, as the suite says."""
    failure: str = ""
    result: Tensor | None = field(default=None, repr=False)

    def numbers(self) -> dict[str, Any]:
        """For JSON, without the result."""
        return {name: value for name, value in vars(self).items() if name != "result"}


def raced(
    name: str, numbers: Mapping[str, Any], *, rounds: int, keys: Sequence[str] | None = None
) -> dict[str, Finish]:
    """Race entrants on one problem; what is not installed is a finish with that failure.

    Args:
        name: key of `RACES`.
        numbers: of the problem.
        rounds: how often each runs, after one run that measures memory.
        keys: of entrants; None is all.
    """
    race = RACES[name]
    chosen = list(race.entrants) if keys is None else keys
    finishes = {key: Finish(key, failure=_absent(race, key, numbers)) for key in chosen}
    spent: dict[str, list[float]] = {key: [] for key in finishes}
    with ExitStack() as stack:
        processes = {
            key: stack.enter_context(_process(name, key, numbers))
            for key, finish in finishes.items()
            if not finish.failure
        }
        for key, process in processes.items():
            found = _asked(process, "memory", finishes[key])
            finishes[key].memory = found.get("memory", math.nan)
            spent[key].append(found.get("seconds", math.nan))
        for _ in range(rounds):
            for key, process in processes.items():
                once = spent[key][0] > _LONG or not race.entrants[key].timed
                if once or finishes[key].failure:
                    continue
                spent[key].append(_asked(process, "turn", finishes[key]).get("seconds", math.nan))
        for key, process in processes.items():
            found = _asked(process, "result", finishes[key])
            if "result" in found:
                finishes[key].result = torch.tensor(found["result"], dtype=torch.float64)
    for key, finish in finishes.items():
        _time(finish, spent[key], spent.get(race.entrants[key].beside, []))
    return finishes


def agreement(found: Tensor, expected: Tensor) -> float:
    """Mean over rows of the rank correlation of two results ``[R, N]``."""
    return float(rank_correlations(found, expected).mean())


def _absent(race: Race, key: str, numbers: Mapping[str, Any]) -> str:
    entrant = race.entrants[key]
    return entrant.absent() or ("" if entrant.takes(race.problem(**numbers)) else entrant.limit)


def _process(name: str, key: str, numbers: Mapping[str, Any]) -> AskedProcess:
    arguments = [name, key, json.dumps(dict(numbers)), str(torch.get_num_threads())]
    return AskedProcess("metalearn.benchmarks.runs.contestant", arguments)


def _asked(process: AskedProcess, question: str, finish: Finish) -> Mapping[str, Any]:
    """The answer; nothing once it has failed, of which a note is made."""
    if finish.failure:
        return {}
    found = process.ask(question)
    finish.failure = found.get("failure", "" if found else "its process ended")
    return {} if finish.failure else found


def _time(finish: Finish, spent: Sequence[float], base: Sequence[float]) -> None:
    """Medians over rounds; of what ran once, that run against the first of the other."""
    if finish.failure or not spent:
        return
    mine, others = (times[1:] or times for times in (spent, base))
    finish.seconds = statistics.median(mine)
    if others:
        whole = len(mine) == len(others)
        pairs = zip(mine, others) if whole else [(finish.seconds, statistics.median(others))]
        finish.ratio = statistics.median(a / b for a, b in pairs)
