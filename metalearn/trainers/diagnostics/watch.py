"""The diagnostics of a training: when they look, what they cost, what survives a stop."""

from __future__ import annotations

import copy
import difflib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.errors import SettingError
from metalearn.schema import Kind, mapping
from metalearn.tracking import NullTracker, Tracker
from metalearn.trainers.diagnostics.fisher_trace import FisherTrace
from metalearn.trainers.diagnostics.gradient_cosines import GradientCosines
from metalearn.trainers.diagnostics.gradient_norms import GradientNorms
from metalearn.trainers.diagnostics.gradient_variance import GradientVariance
from metalearn.trainers.diagnostics.noise_scale import NoiseScales
from metalearn.trainers.diagnostics.protocol import Diagnostic, Eye, Predictive, Watched
from metalearn.types import Params

__all__ = ["DIAGNOSTICS", "Watch", "check_diagnostics", "register"]

log = logging.getLogger(__name__)

DIAGNOSTICS: dict[str, type[Diagnostic]] = {
    kind.name: kind
    for kind in (GradientNorms, GradientVariance, NoiseScales, GradientCosines, FisherTrace)
}
"""All that are known, by name."""


def register(kind: type[Diagnostic]) -> type[Diagnostic]:
    """Make a further diagnostic known: a class decorator."""
    DIAGNOSTICS[kind.name] = kind
    return kind


def check_diagnostics(names: Sequence[str]) -> None:
    """Refuse unknown names and repeated ones.

    Raises:
        SettingError: names them, and those that are known.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise SettingError("diagnostics", names, "a list of names is needed")
    for name in names:
        if name not in DIAGNOSTICS:
            near = difflib.get_close_matches(str(name), DIAGNOSTICS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(DIAGNOSTICS)
            raise SettingError("diagnostics", name, f"known are {known}{hint}")
    if len(set(names)) < len(names):
        raise SettingError("diagnostics", list(names), "each name once is accepted")


class Watch:
    """Diagnostics of one training.

    All that look at units of one kind share one pass over their gradients; its time is counted in
    equal parts to each.

    Args:
        names: of diagnostics.
        every: steps from one look to the next; the first step is looked at as well.
        watched: the trainer.

    Raises:
        SettingError: a diagnostic that this trainer has nothing for.
    """

    def __init__(self, names: Sequence[str], every: int, watched: Watched) -> None:
        check_diagnostics(names)
        self.every, self._watched = every, watched
        self.diagnostics = [DIAGNOSTICS[name]() for name in names]
        self._kinds: dict[str, tuple[str, ...]] = {}
        self._seconds = dict.fromkeys(names, 0.0)
        self._since = time.monotonic()
        offered: Mapping[str, str] = watched.watchable() if names else {}
        for diagnostic in self.diagnostics:
            wanted = [kind for kind in diagnostic.kinds if kind in offered]
            found = tuple(kind for kind in wanted if not offered[kind])
            reasons = [f"{kind}: {offered[kind]}" for kind in wanted if offered[kind]]
            if not found:
                why = "; ".join(reasons) or f"this trainer has no {' or '.join(diagnostic.kinds)}"
                raise SettingError("diagnostics", diagnostic.name, f"it has nothing to see ({why})")
            for reason in reasons:
                log.warning("diagnostics: %s leaves out %s", diagnostic.name, reason)
            self._kinds[diagnostic.name] = found

    def due(self, step: int) -> bool:
        """Whether to look at a step, counted from 0."""
        return bool(self.diagnostics) and (step == 0 or (step + 1) % self.every == 0)

    def look(
        self,
        step: int,
        grads: Mapping[str, Tensor],
        tracker: Tracker,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Compute and record everything; nothing of the training changes.

        Args:
            step: counted from 0; its gradients are taken, its update is not.
            grads: of the step, by parameter.
            tracker: gets all of it, and what it took: ``diagnostics/<name>_seconds`` and, of the
                time since this process began to train, ``diagnostics/<name>_share``.
            check: called between chunks of gradients and whenever a model predicts; what it raises
                leaves no trace here.
        """
        before = copy.deepcopy(self.state())
        try:
            self._look(step, grads, tracker, check)
        except BaseException:
            self.load_state(before)
            raise

    def _look(
        self,
        step: int,
        grads: Mapping[str, Tensor],
        tracker: Tracker,
        check: Callable[[], None],
    ) -> None:
        watched = cast(Watched, _Checked(self._watched, check))
        took = dict.fromkeys(self._seconds, 0.0)
        seen: dict[str, dict[str, Eye]] = {name: {} for name in took}
        kinds = dict.fromkeys(kind for found in self._kinds.values() for kind in found)
        for kind in kinds:
            users = [d for d in self.diagnostics if d.eye and kind in self._kinds[d.name]]
            if not users:
                continue
            started = time.monotonic()
            eyes = self._pass(kind, step, grads, {d.eye for d in users if d.eye}, check)
            for user in users:
                assert user.eye is not None
                seen[user.name][kind] = eyes[user.eye]
                took[user.name] += (time.monotonic() - started) / len(users)
        numbers: dict[str, float] = {}
        for diagnostic in self.diagnostics:
            started = time.monotonic()
            numbers |= diagnostic.conclude(step, watched, seen[diagnostic.name], tracker)
            took[diagnostic.name] += time.monotonic() - started
        self._account(took)
        whole = max(time.monotonic() - self._since, 1e-9)
        numbers |= {f"diagnostics/{name}_seconds": spent for name, spent in took.items()}
        numbers |= {f"diagnostics/{n}_share": s / whole for n, s in self._seconds.items()}
        tracker.scalars(step + 1, numbers)

    def draw(self, step: int, tracker: Tracker) -> None:
        """Figures of what is known after ``step`` steps; their time counts too."""
        if isinstance(tracker, NullTracker):
            return
        for diagnostic in self.diagnostics:
            started = time.monotonic()
            diagnostic.draw(step, tracker)
            self._account({diagnostic.name: time.monotonic() - started})

    def restart(self) -> None:
        """Training begins now: shares of time are counted from here."""
        self._since, self._seconds = time.monotonic(), dict.fromkeys(self._seconds, 0.0)

    def state(self) -> dict[str, Any]:
        """What has to survive a stop, by diagnostic."""
        return {diagnostic.name: diagnostic.state() for diagnostic in self.diagnostics}

    def state_kind(self) -> Kind:
        """What `state` has to be in a checkpoint."""
        return mapping({}, {known.name: known.state_kind() for known in self.diagnostics})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; a diagnostic that is new starts from nothing."""
        for diagnostic in self.diagnostics:
            if diagnostic.name in state:
                diagnostic.load_state(state[diagnostic.name])

    def _pass(
        self,
        kind: str,
        step: int,
        grads: Mapping[str, Tensor],
        wanted: set[type[Eye]],
        check: Callable[[], None],
    ) -> dict[type[Eye], Eye]:
        units = self._watched.units(kind, step, grads)
        eyes = {eye: eye(units) for eye in wanted}
        for block in units.blocks():
            for eye in eyes.values():
                eye.begin()
            for chunk in block:
                check()
                for eye in eyes.values():
                    eye.see(chunk)
            for eye in eyes.values():
                eye.end()
        return eyes

    def _account(self, took: Mapping[str, float]) -> None:
        for name, spent in took.items():
            self._seconds[name] += spent


class _Checked:
    """A trainer whose models call ``check`` whenever they predict."""

    def __init__(self, watched: Watched, check: Callable[[], None]) -> None:
        self._watched, self._check = watched, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watched, name)

    def watched_models(self, step: int) -> Iterator[Predictive]:
        for model in self._watched.watched_models(step):
            yield replace(model, outputs_fn=self._checked(model.outputs_fn))

    def _checked(self, outputs_fn: Callable[[Any], OutputsFn]) -> Callable[[Any], OutputsFn]:
        def of(extra: Any) -> OutputsFn:
            outputs = outputs_fn(extra)

            def checked(params: Params, inputs: Any) -> Tensor:
                self._check()
                return outputs(params, inputs)

            return checked

        return of
