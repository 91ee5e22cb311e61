"""The part of a step that is compiled, where that pays.

Axes: none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, cast

from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.compilation import CompiledFunction, Compiler, check_agreement
from metalearn.core.memory import is_out_of_memory
from metalearn.core.precision import network_type
from metalearn.core.tree import leaves
from metalearn.errors import CompilationError, SettingError
from metalearn.schema import Kind, flag, mapping, maybe, text, whole
from metalearn.trainers.loop.compile_cost import Offer, offer_of, seconds_of, worth_a_look
from metalearn.trainers.loop.compile_course import CompiledCall, Course, said
from metalearn.trainers.loop.protocols import Callback, Training
from metalearn.trainers.loop.pure_calls import Compilable, held, same_call
from metalearn.trainers.loop.settings import Compile

__all__ = ["PATIENCE", "CompiledPart"]

log = logging.getLogger(__name__)

_LOOKS = 3
"""Like calls in a row before it is decided; the first of a process are slow."""
_OTHERS = 50
"""Like calls in a row, that are taken as they are, before it is decided once more."""
_TRIES = 3
"""Decisions of a run."""
PATIENCE = 5.0
"""Seconds of compiling, before which a checkpoint is saved."""
_FROM_HERE = "from here on steps are not compiled"
_LARGEST = 20_000
"""Operations: larger graphs take half an hour to compile, and memory to trace."""


class CompiledPart(Callback):
    """Compiles the pure calls of an objective's gradient, and stays with that from then on.

    By ``"auto"`` it is decided after a few calls, by an estimate of what compiling costs and saves;
    by ``"always"`` at the first. What is compiled holds for like calls (`same_call`) with trees of
    like shapes; others are taken as they are. It is held to the function itself when it is made, at
    its first eight calls and at 16, 32, …, at one of 512 of them and in the last step: where a
    function depends on what is no tensor and no setting, such as a count of its own, that shows
    there as soon as it makes a difference of a hundredth, and the training goes on as it is.

    What was decided is in checkpoints, so that a resumed run computes as the one that was stopped.

    Args:
        wanted: see `metalearn.trainers.loop.settings.Compile`.
        compiler: see `metalearn.core.compilation.Compiler`.

    Attributes:
        code: what is compiled now.
    """

    def __init__(self, wanted: Compile, *, compiler: Compiler = "inductor") -> None:
        self.wanted, self._compiler, self._began = wanted, compiler, 0
        self.code: CompiledCall | None = None
        self._seconds = math.inf
        self._kept = Course(over=wanted == "never")  # after the last step that was taken
        self._now = copy(self._kept)

    @property
    def course(self) -> Course:
        """What was decided so far."""
        return self._now

    @contextmanager
    def during(self, loop: Training) -> Iterator[None]:
        """The objective's pure calls come here, as long as the training goes on."""
        self._now = copy(self._kept)  # a step that was broken off has left no trace
        if self.code is not None and self.code.graph != self._now.graph:
            self.code = None
        objective = cast(Compilable, loop.objective)
        before = getattr(objective, "pure", None)
        if before is None or (self._now.over and not self._now.graph):
            if self.wanted == "always" and self._now.failed:
                log.warning("steps are not compiled, as that failed before in this run")
            yield
            return
        objective.pure, self._loop, self._began = self, loop, loop.step
        try:
            yield
        finally:
            objective.pure = before

    def after_gradient(self, loop: Training, batch: Any, grads: Mapping[str, Tensor]) -> None:
        """Where a person asked for it, say before a step is taken that there is nothing to compile.

        Raises:
            SettingError: that.
        """
        if self.wanted == "always" and self._now.last is None and not self._now.failed:
            accepted = "auto or never is needed: its gradient makes no call that could be compiled"
            raise SettingError("compile", "always", accepted)

    def after_update(self, loop: Training) -> None:
        """A step that was taken counts."""
        self._kept = copy(self._now)

    def __call__(self, function: Callable[..., Any], *trees: Any) -> Any:
        """What the function gives for trees of tensors."""
        if transforms_active():  # of a diagnostic, say
            return function(*trees)
        found = self._compiled(function, trees)
        if found is not None:
            return self._held(found, function, trees)
        waits = bool(self._now.graph) and self.code is None
        if self._now.over and not waits:
            return function(*trees)
        again = self._note(function, trees)
        if waits and self._now.name == self._now.name_of_last():
            with self._loop.clock.paused():
                self._restore(function, trees)
            found = self._compiled(function, trees)
            if found is not None:
                return self._held(found, function, trees)
        due = self._now.like >= self._due
        if self._now.over or not (again or due):
            return function(*trees)  # the first of a kind is slow
        found, seconds = seconds_of(lambda: function(*trees), self._loop.device)
        self._seconds = min(self._seconds, seconds)
        if due:
            with self._loop.clock.paused():
                self._decide(function, trees, found)
        return found

    def state(self) -> dict[str, Any]:
        """The graph that is compiled, whether there will be another, and how near that is.

        As it was after the last step that was taken.
        """
        return {} if self.wanted == "never" else {"compiled": self._kept.plain()}

    def state_kinds(self) -> list[Kind]:
        """The same, where there is some."""
        names = dict.fromkeys(("graph", "name", "last"), text)
        counts = dict.fromkeys(("like", "tries", "calls"), whole())
        flags = dict.fromkeys(("over", "failed"), flag)
        return [mapping({}, {"compiled": maybe(mapping({**names, **counts, **flags}))})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as was decided; a run that may not compile any more does not."""
        self._forget()
        kept = state.get("compiled")
        if not kept or self.wanted == "never":
            return
        kept = {**kept, "before": kept["last"], "last": None}
        if self.wanted == "always" and not kept["graph"] and not kept["failed"]:
            kept |= {"over": False, "tries": 0, "like": 0}  # that was decided by another wish
        self._kept = Course(**kept)
        self._now = copy(self._kept)

    def _forget(self) -> None:
        """Begin anew."""
        self._kept = Course(over=self.wanted == "never")
        self._now = copy(self._kept)
        self.code, self._seconds = None, math.inf

    @property
    def _due(self) -> int:
        """How many like calls in a row lead to a decision."""
        first = 1 if self.wanted == "always" else _LOOKS
        return _OTHERS if self._now.tries else first

    def _note(self, function: Callable[..., Any], trees: Any) -> bool:
        """Count a call that is taken as it is; whether the one before it, here, was like it."""
        now, last = self._now, self._now.last
        kinds = [(tuple(value.shape), value.stride(), value.dtype) for value in leaves(trees)]
        shapes = kinds, network_type()
        now.last = held(function), shapes
        if last is None:
            like = now.before == now.name_of_last()
        else:
            like = same_call(last[0], function) and last[1] == shapes
        again = like and last is not None
        self._seconds = self._seconds if again else math.inf
        now.like = now.like + 1 if like else 1
        return again

    def _decide(self, function: Callable[..., Any], trees: Any, found: Any) -> None:
        """Compile where that pays, or was asked for."""
        settings, now = self._loop.settings, self._now
        calls = (settings.steps - self._loop.step - 1) * settings.accumulate
        now.tries, now.like = now.tries + 1, 0
        now.over = now.tries >= _TRIES
        asked = self.wanted == "always"
        if not asked and not worth_a_look(self._seconds, calls):
            now.over = True
            log.debug("steps are not compiled: those that are left are too few, or too fast")
            return
        if not asked and not now.graph and now.name == now.name_of_last():
            return  # it did not pay before, for more calls
        code = CompiledFunction(function, compiler=self._compiler, limit=_LARGEST)
        try:
            offer = offer_of(code, trees, self._seconds, calls)
        except Exception as error:  # whatever torch raises, a training goes on
            return self._failed(error)
        if not asked and not offer.pays:
            now.name = now.name if now.graph else now.name_of_last()
            log.info("steps are not compiled, as that does not pay: %s", offer)
            return
        self._make(code, trees, found, offer)
        if self.code is not None:
            now.graph, now.name, now.calls = self.code.graph, now.name_of_last(), 0

    def _restore(self, function: Callable[..., Any], trees: Any) -> None:
        """Compile what was compiled before an interruption."""
        wanted = function(*trees)  # before it is traced, as it may try out what it is given
        code = CompiledFunction(function, compiler=self._compiler, limit=_LARGEST)
        try:
            offer = offer_of(code, trees, 0.0, 0)
            if code.digest(*trees) != self._now.graph:
                raise CompilationError("it takes other operations now")
        except Exception as error:
            return self._failed(error)
        self._make(code, trees, wanted, offer)

    def _make(self, code: CompiledFunction, trees: Any, wanted: Any, offer: Offer) -> None:
        """Compile; what there is to lose is saved before, as no signal ends a compilation."""
        self._loop.stop.check()
        if offer.compiling > PATIENCE:
            self._loop.save("last")
        log.info("compiling the gradient of a step: %s", offer)
        try:
            code.compile(*trees, wanted=wanted)
        except Exception as error:
            return self._failed(error)
        self.code = CompiledCall(code, self._loop.module, code.digest(*trees))
        log.info("compiled in %.1f s", code.seconds)

    def _failed(self, error: Exception) -> None:
        """Go on without, unless a person asked for it and training is about to begin.

        Raises:
            SettingError: that.
        """
        self._loop.stop.check()  # which may have been what the compiler died of
        asked, reason = self.wanted == "always", said(error)
        if asked and self._loop.step == self._began:
            accepted = f"auto or never is needed: {reason}"
            raise SettingError("compile", "always", accepted) from error
        if self._now.graph and self.code is None:
            self._leave(f"the run goes on otherwise than before the interruption: {reason}")
            return
        self._now.over = self._now.failed = True
        log.log(logging.WARNING if asked else logging.INFO, "steps are not compiled: %s", reason)

    def _compiled(self, function: Callable[..., Any], trees: Any) -> Any:
        """What compiled code gives for such a call; None where there is none that holds."""
        if self.code is None:
            return None
        try:
            return self.code(function, trees)
        except Exception as error:  # for lack of memory, say, that the function does not need
            reason = said(error)
        self._leave(f"compiled code fails ({reason}); {_FROM_HERE}")
        return None

    def _held(self, found: Any, function: Callable[..., Any], trees: Any) -> Any:
        """What compiled code gave, held to the function now and then."""
        self._now.calls, self._now.like = self._now.calls + 1, 0
        if not self._now.checks and self._loop.step < self._loop.settings.steps - 1:
            return found
        try:
            wanted = function(*trees)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("memory does not suffice to check the compiled code at this step")
            return found
        try:
            check_agreement(found, wanted)
        except CompilationError as error:
            hint = "a loss or model that changes over a training needs trainer.compile=never"
            self._leave(f"{error}; {_FROM_HERE}; {hint}")
            return wanted
        return found

    def _leave(self, reason: str) -> None:
        """Take all further steps as they are."""
        self.code = None
        self._now.graph, self._now.over, self._now.failed = "", True, True
        log.warning("step %d: %s", self._loop.step, reason)
