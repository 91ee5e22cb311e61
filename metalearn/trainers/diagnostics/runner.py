"""The diagnostics of a training: when they look, what they cost, what survives a stop."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from metalearn.errors import SettingError
from metalearn.schema import Kind, mapping
from metalearn.tracking import NullTracker, Tracker
from metalearn.trainers.diagnostics.measuring import measure
from metalearn.trainers.diagnostics.protocol import Diagnostic, DiagnosticSource, spelled_out
from metalearn.trainers.diagnostics.registry import DIAGNOSTICS, check_diagnostics

__all__ = ["DiagnosticRunner"]

log = logging.getLogger(__name__)


class DiagnosticRunner:
    """Diagnostics of one training.

    Args:
        names: of diagnostics.
        every: steps from one look to the next; the first step is looked at as well.
        source: the trainer.

    Raises:
        SettingError: a diagnostic that this trainer has nothing for.
    """

    def __init__(self, names: Sequence[str], every: int, source: DiagnosticSource) -> None:
        check_diagnostics(names)
        self.every, self.source = every, source
        self._seconds = dict.fromkeys(names, 0.0)
        self._since = time.monotonic()
        offered: Mapping[str, str] = source.diagnostic_kinds() if names else {}
        chosen = [DIAGNOSTICS[name]() for name in names]
        self._kinds = {diagnostic: _kinds_of(diagnostic, offered) for diagnostic in chosen}

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """In the order of their names."""
        return list(self._kinds)

    def due(self, step: int) -> bool:
        """Whether to look at a step, counted from 0."""
        return bool(self._kinds) and (step == 0 or (step + 1) % self.every == 0)

    def run(
        self,
        step: int,
        batch: Any,
        grads: Mapping[str, Tensor],
        tracker: Tracker,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute and record everything; nothing of the training changes.

        Args:
            step: counted from 0; its gradients are taken, its update is not.
            batch: of the step.
            grads: of the step, by parameter.
            tracker: gets all of it, and what it took: ``diagnostics/<name>_seconds`` and, of the
                time since this process began to train, ``diagnostics/<name>_share``.
            check: called between chunks of gradients and whenever a model predicts; what it raises
                leaves no trace here.
        """
        before = copy.deepcopy(self.state())
        try:
            found = measure(self._kinds, self.source, batch, grads, check=check)
            numbers: dict[str, float] = {}
            for diagnostic in self._kinds:
                started = time.monotonic()
                for kind, result in found.results[diagnostic.name].items():
                    numbers |= diagnostic.record(step, kind, result, tracker)
                found.seconds[diagnostic.name] += time.monotonic() - started
        except BaseException:
            self.load_state(before)
            raise
        self._account(found.seconds)
        whole = max(time.monotonic() - self._since, 1e-9)
        numbers |= {f"diagnostics/{name}_seconds": spent for name, spent in found.seconds.items()}
        numbers |= {f"diagnostics/{n}_share": s / whole for n, s in self._seconds.items()}
        tracker.scalars(step + 1, numbers)

    def draw(self, step: int, tracker: Tracker) -> None:
        """Figures of what is known after ``step`` steps; their time counts too."""
        if isinstance(tracker, NullTracker):
            return
        for diagnostic in self._kinds:
            started = time.monotonic()
            diagnostic.draw(step, tracker)
            self._account({diagnostic.name: time.monotonic() - started})

    def restart(self) -> None:
        """Training begins now: shares of time are counted from here."""
        self._since, self._seconds = time.monotonic(), dict.fromkeys(self._seconds, 0.0)

    def state(self) -> dict[str, Any]:
        """What has to survive a stop, by diagnostic."""
        return {diagnostic.name: diagnostic.state() for diagnostic in self._kinds}

    def state_kind(self) -> Kind:
        """What `state` has to be in a checkpoint."""
        return mapping({}, {known.name: known.state_kind() for known in self._kinds})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; a diagnostic that is new starts from nothing."""
        for diagnostic in self._kinds:
            if diagnostic.name in state:
                diagnostic.load_state(state[diagnostic.name])

    def _account(self, took: Mapping[str, float]) -> None:
        for name, spent in took.items():
            self._seconds[name] += spent


def _kinds_of(diagnostic: Diagnostic, offered: Mapping[str, str]) -> tuple[str, ...]:
    """Of what a diagnostic can look at, what there is; told is what is left out."""
    wanted = [kind for kind in diagnostic.kinds if kind in offered]
    found = tuple(kind for kind in wanted if not offered[kind])
    reasons = [f"{kind}: {offered[kind]}" for kind in wanted if offered[kind]]
    if not found:
        why = "; ".join(reasons) or f"this trainer has no {spelled_out(diagnostic.kinds)}"
        raise SettingError("diagnostics", diagnostic.name, f"it has nothing to see ({why})")
    for reason in reasons:
        log.warning("diagnostics: %s leaves out %s", diagnostic.name, reason)
    return found
