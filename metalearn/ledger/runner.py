"""Running a row: train or go on, test, keep what came out."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn.errors import DataError
from metalearn.ledger.outcomes import Outcome, outcome_of
from metalearn.ledger.rows import Row
from metalearn.tracking import write_json

__all__ = ["Commands", "Interrupted", "RowRunner"]


_SIGNALLED = 128


class Interrupted(Exception):
    """A run was stopped before its end; the next call goes on with it."""


def call_to_its_end(words: Sequence[str]) -> int:
    """Run a command; its exit code. A signal is the command's to answer, and waited for.

    Ctrl-C reaches it by itself, from the terminal; SIGTERM and SIGHUP are handed on.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are not heard there
        return subprocess.call(list(words))
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    child: list[subprocess.Popen[bytes]] = []

    def heard(number: int, frame: object) -> None:
        if number != signal.SIGINT and child:
            child[0].send_signal(number)

    before = {name: signal.signal(getattr(signal, name), heard) for name in names}
    try:
        child.append(subprocess.Popen(list(words)))
        return child[0].wait()
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@dataclass(frozen=True)
class Commands:
    """How the commands of metalearn are called; each gives its exit code."""

    prefix: Sequence[str]
    """The words before ``train …``."""
    call: Callable[[Sequence[str]], int] = call_to_its_end
    """Runs a command to its end."""

    def run(self, *words: str) -> None:
        """Run a command.

        Raises:
            Interrupted: a signal ended it, of which it said so (128 + its number) or not (below 0).
            DataError: it failed; what it printed says why.
        """
        code = self.call([*self.prefix, *words])
        if code < 0 or code > _SIGNALLED:
            raise Interrupted(
                f"`metalearn {' '.join(words)}` was stopped; the same command goes on"
            )
        if code:
            raise DataError(f"`metalearn {' '.join(words)}` ended with code {code}")


class RowRunner:
    """Runs rows in a folder; what is finished is not run again.

    Args:
        folder: keeps ``<row>-seed<s>.json`` of what is finished, and the runs in
            ``runs/<row>-seed<s>``.
        commands: how commands are called.
        further: settings that every training gets, after those of the row.
    """

    def __init__(self, folder: Path, commands: Commands, further: Sequence[str] = ()) -> None:
        self.folder, self.commands, self.further = folder, commands, tuple(further)

    def place(self, row: Row, seed: int) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / f"{row.name}-seed{seed}"

    def kept(self, row: Row, seed: int) -> Path:
        """The file of what a run gave."""
        return self.folder / f"{row.name}-seed{seed}.json"

    def state(self, row: Row, seed: int) -> str:
        """``"finished"``, ``"begun"`` or ``"not run"``."""
        if self.kept(row, seed).exists():
            return "finished"
        return "begun" if (self.place(row, seed) / "config.yaml").exists() else "not run"

    def run(self, row: Row, seed: int) -> Outcome:
        """Train a seed of a row, or go on with it; test it; keep the outcome.

        Raises:
            Interrupted: the training was stopped by a signal, which it survived.
            DataError: a command failed.
        """
        place = self.place(row, seed)
        if not _has_ended(place):
            if (place / "config.yaml").exists():
                self.commands.run("train", f"resume={place}")
            else:
                self.commands.run(
                    "train",
                    f"experiment={row.name}",
                    f"seed={seed}",
                    f"hydra.run.dir={place}",
                    *self.further,
                )
        if not _has_ended(place):
            raise Interrupted(f"{row.name}, seed {seed}: stopped; the same command goes on")
        self.commands.run("evaluate", f"run={place}")
        found = outcome_of(row, seed, place)
        write_json(self.kept(row, seed), found.as_json())
        return found


def _has_ended(place: Path) -> bool:
    """Whether a run's training is over."""
    try:
        results = json.loads((place / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and results.get("reason") in ("finished", "patience")
