"""Clipping and the outer optimiser's step as compiled code, beside a compiled gradient.

Axes: M networks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from metalearn.core.compilation import CompiledFunction, Compiler
from metalearn.core.memory import synchronize
from metalearn.errors import CompilationError
from metalearn.schema import Kind, flag, mapping, maybe, text, whole
from metalearn.trainers.loop.compile_cost import offer_of
from metalearn.trainers.loop.compile_course import is_checked, said
from metalearn.trainers.loop.compiled_part import PATIENCE, CompiledPart
from metalearn.trainers.loop.flat_update import FlatUpdate, agrees
from metalearn.trainers.loop.protocols import Callback, Training
from metalearn.trainers.loop.step import Proposal

__all__ = ["CompiledUpdate"]

log = logging.getLogger(__name__)

_LOOKS = 5
"""Updates that are timed before it is decided, the shortest of which counts."""

_SECONDS_PER_OPERATION = 0.02
"""Of compiling it for the first time: most operations are views of a parameter."""


class _Decided(NamedTuple):
    graph: str = ""
    """Name of the graph that is compiled; empty where none is."""
    over: bool = False
    """Whether nothing more will be decided."""
    seen: int = 0
    """Updates that were made as they are, beside a compiled gradient."""
    calls: int = 0
    """Of compiled code."""
    failed: bool = False
    """Whether compiling, or compiled code, failed."""


class CompiledUpdate(Callback):
    """Computes a step's update by compiled code, where its gradient is compiled and it pays.

    An update is proposed before anything is known of the gradient's norms, and made once these are
    seen to be finite, so that nothing waits for a device twice. It is held to the update itself as
    the compiled gradient is to the function, counted for itself: such steps take the former.
    What was decided is in checkpoints, as of the gradient.

    It is the first callback, so that nobody else has changed the parameters when it looks at them.

    Args:
        part: which compiles the gradient.
        compiler: see `metalearn.core.compilation.Compiler`.
    """

    def __init__(self, part: CompiledPart, *, compiler: Compiler = "inductor") -> None:
        self._part, self._compiler = part, compiler
        self._kept = self._now = _Decided(over=part.wanted == "never")
        self._code: CompiledFunction | None = None
        self._flat: FlatUpdate | None = None
        self._graph = ""
        self._seconds, self._since = math.inf, 0.0
        self._open: tuple[Proposal, list[Tensor], Tensor] | None = None

    @contextmanager
    def during(self, loop: Training) -> Iterator[None]:
        """The loop asks here for updates, as long as the training goes on."""
        self._now = self._kept  # a step that was broken off has left no trace
        self._forget()
        self._loop = loop
        loop.proposed = None if self._now.over else self.proposed
        try:
            yield
        finally:
            loop.proposed = None

    def proposed(
        self, grads: Mapping[str, Tensor], losses: Tensor, factor: float
    ) -> Proposal | None:
        """The update by gradients that are about to be clipped; None where it is to be made as is.

        Learning rates are those where the schedule has this factor.
        """
        self._open = None
        course = self._part.course
        if self._now.over or (course.over and not course.graph):
            self._now = self._now._replace(graph="", over=True)  # with the gradient, if not before
            self._code, self._flat, self._graph = None, None, ""
            return None
        if self._code is None and (self._now.graph or self._is_due()):
            with self._loop.clock.paused():
                self._compile(grads, losses, factor)
        if self._code is None:
            synchronize(self._loop.device)
            self._since = time.perf_counter()
            return None
        found = self._run(grads, losses, factor)
        if found is None:
            return None
        self._now = self._now._replace(calls=self._now.calls + 1)
        if not is_checked(self._now.calls):
            return found
        try:
            self._open = found, [place.clone() for place in found.places], self._active().clone()
        except Exception as error:  # for lack of memory: such a step is not looked at
            log.debug("step %d: the compiled update is not checked: %s", self._loop.step, error)
        return None

    def after_update(self, loop: Training) -> None:
        """Hold what was proposed to what was done; and time updates that are made as they are."""
        if self._open is not None:
            found, before, active = self._open
            self._open = None
            if active.equal(self._active()):  # else a member has diverged at this very step
                self._compare(found, before)
        elif self._part.code is not None and self._code is None and not self._now.over:
            synchronize(loop.device)
            self._seconds = min(self._seconds, time.perf_counter() - self._since)
            self._now = self._now._replace(seen=self._now.seen + 1)
        self._kept = self._now

    def _compare(self, found: Proposal, before: list[Tensor]) -> None:
        """Hold what was proposed to what the optimiser has made; a step is over whatever comes."""
        try:
            alike = agrees(found.values, before, found.places)
        except Exception as error:  # for lack of memory, say
            log.debug("step %d: the compiled update is not checked: %s", self._loop.step, error)
            return
        if not alike:
            self._leave("the compiled update differs from the optimiser's")

    def state(self) -> dict[str, Any]:
        """The graph that is compiled, and whether there will be another, once that is known."""
        if self._part.wanted == "never" or self._kept == _Decided():
            return {}
        return {"compiled_update": self._kept._asdict()}

    def state_kinds(self) -> list[Kind]:
        """The same, where there is some."""
        kept = mapping(
            {"graph": text, "over": flag, "seen": whole(), "calls": whole(), "failed": flag}
        )
        return [mapping({}, {"compiled_update": maybe(kept)})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as was decided; a run that may not compile any more does not."""
        kept = _Decided(**(state.get("compiled_update") or {}))
        if self._part.wanted == "always" and not kept.graph and not kept.failed:
            kept = _Decided(seen=kept.seen)  # that was decided by another wish
        self._kept = self._now = _Decided(over=True) if self._part.wanted == "never" else kept
        self._graph = ""  # the optimiser's state is another one
        self._forget()

    def _forget(self) -> None:
        """What is not in checkpoints."""
        if not self._graph or self._graph != self._now.graph:
            self._code, self._flat, self._graph = None, None, ""
        self._seconds, self._since = math.inf, 0.0
        self._open = None

    def _is_due(self) -> bool:
        looks = 1 if self._part.wanted == "always" else _LOOKS
        return self._part.code is not None and self._now.seen >= looks

    def _active(self) -> Tensor:
        return self._loop.population.active

    def _run(self, grads: Mapping[str, Tensor], losses: Tensor, factor: float) -> Proposal | None:
        """What compiled code proposes."""
        code, flat = self._code, self._flat
        assert code is not None and flat is not None
        if not flat.is_like(grads):
            self._leave("gradients or the optimiser's state are others than before")
            return None
        try:
            if not flat.is_ready(grads, losses, factor):
                return None
            return flat.proposal(code, grads, losses, factor)
        except Exception as error:  # for lack of memory, say
            self._leave(f"the compiled update fails ({said(error)})")
            return None

    def _compile(self, grads: Mapping[str, Tensor], losses: Tensor, factor: float) -> None:
        """Compile what was compiled before an interruption; else where it pays or was asked for."""
        loop, before = self._loop, self._now.graph
        try:
            flat = FlatUpdate(loop.update, loop.population, loop.params, grads, losses)
            if not before and not flat.is_ready(grads, losses, factor):
                return  # not yet, as in a warm-up that begins at a rate of 0
            given = flat.trees(grads, losses, factor)
            code = CompiledFunction(flat.function, compiler=self._compiler)
            calls = loop.settings.steps - loop.step - 1
            timed = math.isfinite(self._seconds)
            seconds = self._seconds if timed else code.trace(*given).seconds(given)
            offer = offer_of(code, given, seconds, calls, each=_SECONDS_PER_OPERATION)
            if before and code.digest(*given) != before:
                raise CompilationError("it takes other operations now")
            if not (before or self._part.wanted == "always" or offer.pays_too):
                self._now = _Decided(over=True)
                log.info("updates are not compiled, as that does not pay: %s", offer)
                return
            loop.stop.check()
            if offer.compiling > PATIENCE:
                loop.save("last")
            log.info("compiling the update of a step: %s", offer)
            code.compile(*given)
        except Exception as error:  # whatever torch raises, a training goes on
            loop.stop.check()
            self._now = _Decided(over=True, failed=True)
            went = f"step {loop.step}: the run goes on otherwise than before the interruption: "
            level = logging.WARNING if before else logging.INFO
            log.log(level, "%supdates are not compiled: %s", went if before else "", said(error))
            return
        log.info("compiled in %.1f s", code.seconds)
        self._code, self._flat = code, flat
        self._graph = code.digest(*given)
        self._now = self._now._replace(graph=self._graph)

    def _leave(self, reason: str) -> None:
        """Make all further updates as they are."""
        self._code, self._flat, self._graph = None, None, ""
        self._now = _Decided(over=True, failed=True)
        log.warning("step %d: %s; from here on updates are not compiled", self._loop.step, reason)
