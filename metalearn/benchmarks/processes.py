"""Contestants in processes of their own: asked one thing at a time, answering in a line of JSON."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["AskedProcess", "answer_questions", "on_processors", "process_peak"]


class AskedProcess:
    """A process of a module of this package, idle until it is asked.

    Args:
        module: to run, which calls `answer_questions`.
        arguments: of its command line.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, question: str) -> dict[str, Any]:
        """Its answer; NaN for every quantity once it has died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return _Nothing()
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else _Nothing()
        return found

    def __enter__(self) -> AskedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, at which it ends


class _Nothing(dict[str, Any]):
    def __missing__(self, key: str) -> float:
        return math.nan


@contextmanager
def on_processors(count: int | None) -> Iterator[None]:
    """A block in which what this thread starts has so many processors; None: all of them.

    Those are processes, and threads of this one that are not there yet. Some libraries, JAX among
    them, take as many threads as there are processors, whatever they are told. Where the system
    cannot do so (all but Linux) nothing is done.

    Args:
        count: at least 1.
    """
    if count is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def answer_questions(answer: Callable[[str], Any]) -> None:
    """Answer every line of standard input until it ends; what else is printed goes elsewhere."""
    answers, sys.stdout = sys.stdout, sys.stderr  # other libraries print
    for question in sys.stdin:
        print(json.dumps(answer(question.strip())), file=answers, flush=True)


def process_peak() -> int:
    """Peak resident bytes of this process; Linux counts its parent's in ru_maxrss."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
