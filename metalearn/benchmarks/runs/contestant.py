"""One entrant of a race in a process of its own.

``python -m metalearn.benchmarks.runs.contestant hyper mixed '{"steps": 100}' 1``: the race, the
entrant, the numbers of the problem, and threads. Each line on standard input asks for one thing:

- ``memory``: peak bytes above those after the imports and a tiny problem, and seconds of the run.
  Makes sense as the first question.
- ``turn``: seconds of processor time, the median of several runs where one is over in an instant.
- ``result``: what it found.

What fails is answered by ``failure``, a line that says why.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metalearn.benchmarks.processes import answer_questions, process_peak
from metalearn.benchmarks.runs.races import RACES

__all__ = ["Contestant"]

_TURN = 0.05  # seconds that a turn lasts at least


class Contestant:
    """Answers what the parent process asks."""

    def __init__(self, race: str, entrant: str, numbers: dict[str, Any]) -> None:
        self.race, self.numbers = RACES[race], numbers
        self.entrant = self.race.entrants[entrant]
        self.found: Tensor | None = None

    def answer(self, question: str) -> dict[str, Any]:
        """To ``memory``, ``turn`` or ``result``; another library may fail in any way."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found: dict[str, Any] = getattr(self, question)()
                return found
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            return {"failure": f"{type(error).__name__}: {text}"}

    def memory(self) -> dict[str, Any]:
        """Growth of the peak by the first run, and its time."""
        tiny = self.race.problem(**{**self.numbers, **self.race.tiny})
        self.entrant.prepare(tiny)()  # loads what is loaded lazily
        run = self._run
        before = process_peak()
        seconds = self._seconds(run)
        return {"memory": process_peak() - before, "seconds": seconds}

    def turn(self) -> dict[str, Any]:
        """Time of a run, after others had the machine."""
        spent = [self._seconds(self._run)]
        while sum(spent) < _TURN:
            spent.append(self._seconds(self._run))
        return {"seconds": statistics.median(spent)}

    def result(self) -> dict[str, Any]:
        """Of the last run."""
        found = self._run() if self.found is None else self.found
        return {"result": found.detach().double().tolist()}

    @cached_property
    def _run(self) -> Callable[[], Tensor]:
        return self.entrant.prepare(self.race.problem(**self.numbers))

    def _seconds(self, run: Callable[[], Tensor]) -> float:
        start = time.process_time()
        self.found = run()
        return time.process_time() - start


def _serve(race: str, entrant: str, numbers: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    answer_questions(Contestant(race, entrant, json.loads(numbers)).answer)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
