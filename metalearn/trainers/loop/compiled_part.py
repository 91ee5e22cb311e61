"""The part of a step that is compiled, where that pays.

Axes: none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor

from metalearn.core._functorch import transforms_active
from metalearn.core.compilation import CompiledFunction, Compiler, check_agreement
from metalearn.core.tree import leaves
from metalearn.errors import CompilationError, SettingError, StorageError
from metalearn.schema import Kind, flag, mapping, maybe, text, whole
from metalearn.trainers.loop.compile_cost import offer_of, seconds_of, worth_a_look
from metalearn.trainers.loop.protocols import Callback, Training
from metalearn.trainers.loop.pure_calls import Compilable, as_it_is, digest_of, held, same_call
from metalearn.trainers.loop.settings import Compile
from metalearn.trainers.loop.stop_signal import Stopped

__all__ = ["CompiledPart"]

log = logging.getLogger(__name__)

_LOOKS = 3
"""Like calls in a row before it is decided; the first of a process are slow."""
_OTHERS = 50
"""Like calls in a row, that are taken as they are, before it is decided once more."""
_TRIES = 3
"""Decisions of a run."""
_EVERY = 512
"""Calls after which compiled code is held to what it stands for, at the latest."""
_LARGEST = 20_000
"""Operations: larger graphs take half an hour to compile, and memory to trace."""


class CompiledPart(Callback):
    """Compiles the pure calls of an objective's gradient, and stays with that from then on.

    By ``"auto"`` it is decided after a few calls, by an estimate of what compiling costs and saves;
    by ``"always"`` at the first. What is compiled holds for like calls (`same_call`) with trees of
    like shapes; others are taken as they are. It is held to the function itself when it is made,
    at its calls 1, 2, 4, 8, … and at each 512th: where a function depends on what is no tensor and
    no setting, such as a count of its own, that shows there, and the training goes on as it is.

    What was decided is in checkpoints, so that a resumed run computes as the one that was stopped.

    Args:
        wanted: see `metalearn.trainers.loop.settings.Compile`.
        compiler: see `metalearn.core.compilation.Compiler`.
    """

    def __init__(self, wanted: Compile, *, compiler: Compiler = "inductor") -> None:
        self.wanted, self._compiler = wanted, compiler
        self._over = wanted == "never"
        self._code: CompiledFunction | None = None
        self._of: Callable[..., Any] | None = None
        self._graph = self._name = ""  # of what is compiled: of its graph, and of the call
        self._calls = self._like = self._tries = 0
        self._last: tuple[Callable[..., Any], Any] | None = None
        self._before = ""  # the name of the last call of the run that goes on here
        self._seconds, self._began = math.inf, 0

    @contextmanager
    def during(self, loop: Training) -> Iterator[None]:
        """The objective's pure calls come here, as long as the training goes on."""
        objective = cast(Compilable, loop.objective)
        idle = self._over and not self._graph
        if idle or getattr(objective, "pure", None) is None:
            yield
            return
        objective.pure, self._loop, self._began = self, loop, loop.step
        try:
            yield
        finally:
            objective.pure = as_it_is

    def after_gradient(self, loop: Training, batch: Any, grads: Mapping[str, Tensor]) -> None:
        """Where a person asked for it, say before a step is taken that there is nothing to compile.

        Raises:
            SettingError: that.
        """
        if self.wanted == "always" and self._last is None:
            accepted = "auto or never is needed: its gradient makes no call that could be compiled"
            raise SettingError("compile", "always", accepted)

    def __call__(self, function: Callable[..., Any], *trees: Any) -> Any:
        """What the function gives for trees of tensors."""
        if transforms_active():  # of a diagnostic, say
            return function(*trees)
        if self._code is not None and same_call(function, self._of):
            found = self._code.run(*trees)
            if found is not None:
                return self._held(found, function, trees)
        waits = bool(self._graph) and self._code is None
        if self._over and not waits:
            return function(*trees)
        again = self._note(function, trees)
        if waits and self._name == self._name_of_last() and self._restored(function, trees):
            assert self._code is not None
            return self._held(self._code.run(*trees), function, trees)
        if self._over:
            return function(*trees)
        due = self._like >= self._due
        if not again and not due:
            return function(*trees)  # the first of a kind is slow
        found, seconds = seconds_of(lambda: function(*trees), self._loop.device)
        self._seconds = min(self._seconds, seconds)
        if due:
            with self._loop.clock.paused():
                self._decide(function, trees, found)
        return found

    def state(self) -> dict[str, Any]:
        """The graph that is compiled, whether there will be another, and how near that is."""
        if self.wanted == "never":
            return {}
        counts = {"like": self._like, "tries": self._tries, "calls": self._calls}
        names = {"graph": self._graph, "name": self._name, "last": self._name_of_last()}
        return {"compiled": {**names, **counts, "over": self._over}}

    def state_kinds(self) -> list[Kind]:
        """The same, where there is some."""
        count = whole()
        counts = {"like": count, "tries": count, "calls": count}
        kept = mapping({"graph": text, "name": text, "last": text, "over": flag, **counts})
        return [mapping({}, {"compiled": maybe(kept)})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as was decided; a run that may not compile any more does not."""
        kept = state.get("compiled")
        if not kept or self.wanted == "never":
            return
        self._graph, self._name, self._before = kept["graph"], kept["name"], kept["last"]
        self._like, self._calls = kept["like"], kept["calls"]
        self._tries, self._over = kept["tries"], kept["over"]
        if self.wanted == "always" and not self._graph:
            self._over, self._tries, self._like = False, 0, 0

    @property
    def _due(self) -> int:
        """How many like calls in a row lead to a decision."""
        if self._tries:
            return _OTHERS
        return 1 if self.wanted == "always" else _LOOKS

    def _note(self, function: Callable[..., Any], trees: Any) -> bool:
        """Count a call that is taken as it is; whether the one before it, here, was like it."""
        shapes = [(tuple(value.shape), value.dtype) for value in leaves(trees)]
        last, self._last = self._last, (held(function), shapes)
        if last is None:
            like = self._before == self._name_of_last()
        else:
            like = same_call(last[0], function) and last[1] == shapes
        again = like and last is not None
        self._seconds = self._seconds if again else math.inf
        self._like = self._like + 1 if like else 1
        return again

    def _name_of_last(self) -> str:
        """A name for the last call that was taken as it is, in another process too."""
        return self._before if self._last is None else digest_of(*self._last)

    def _decide(self, function: Callable[..., Any], trees: Any, found: Any) -> None:
        """Compile where that pays, or was asked for."""
        settings = self._loop.settings
        calls = (settings.steps - self._loop.step - 1) * settings.accumulate
        self._tries, self._like = self._tries + 1, 0
        self._over = self._tries >= _TRIES
        asked = self.wanted == "always"
        if not asked and not worth_a_look(self._seconds, calls):
            self._over = True  # nor will it later
            return
        code = CompiledFunction(function, compiler=self._compiler, limit=_LARGEST)
        try:
            offer = offer_of(code, trees, self._seconds, calls)
            if not asked and not offer.pays:
                log.info("steps are not compiled, as that does not pay: %s", offer)
                return
            log.info("compiling the gradient of a step: %s", offer)
            code.compile(*trees, wanted=found)
        except Stopped:
            raise
        except Exception as error:  # whatever torch's compiler raises, a training goes on
            self._over = True
            reason = _said(error)
            if asked and self._loop.step == self._began:
                accepted = f"auto or never is needed: {reason}"
                raise SettingError("compile", "always", accepted) from error
            log.info("steps are not compiled: %s", reason)
            return
        log.info("compiled in %.1f s", code.seconds)
        self._code, self._of, self._calls = code, held(function), 0
        self._graph, self._name = code.digest(*trees), self._name_of_last()

    def _restored(self, function: Callable[..., Any], trees: Any) -> bool:
        """Compile what was compiled before an interruption."""
        code = CompiledFunction(function, compiler=self._compiler, limit=_LARGEST)
        try:
            with self._loop.clock.paused():
                if code.digest(*trees) != self._graph:
                    raise CompilationError("it takes other operations now")
                log.info("compiling the gradient of a step, as before the interruption")
                code.compile(*trees)
        except Stopped:
            raise
        except Exception as error:
            self._over, self._graph = True, ""
            log.warning("the run goes on otherwise than before the interruption: %s", _said(error))
            return False
        self._code, self._of = code, held(function)
        return True

    def _held(self, found: Any, function: Callable[..., Any], trees: Any) -> Any:
        """What compiled code gave, held to the function now and then."""
        self._calls, self._like = self._calls + 1, 0
        if self._calls & (self._calls - 1) and self._calls % _EVERY:
            return found
        wanted = function(*trees)
        try:
            check_agreement(found, wanted)
        except CompilationError as error:
            self._code, self._of, self._graph, self._over = None, None, "", True
            log.warning(
                "step %d: %s; from here on steps are not compiled. A loss or model that changes "
                "over a training needs trainer.compile=never",
                self._loop.step, error,
            )  # fmt: skip
            return wanted
        return found


def _said(error: Exception) -> str:
    """Why, in a line."""
    if isinstance(error, CompilationError | SettingError | StorageError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
