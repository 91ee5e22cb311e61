"""What was decided about compiling the gradient of a step, and the code that came of it.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from metalearn.core.compilation import CompiledFunction
from metalearn.core.module.private_copy import ModuleTemplate
from metalearn.errors import CompilationError, SettingError, StorageError
from metalearn.trainers.loop.pure_calls import digest_of, held, same_call

__all__ = ["CompiledCall", "Course", "is_checked", "said"]

_AT_FIRST, _EVERY = 8, 512  # a call that is not compiled costs ten others of a small network
_GOLDEN = 2654435769  # 2³² over the golden ratio: multiples are spread evenly, by any stride


class CompiledCall:
    """Compiled code, and what it stands for.

    Args:
        code: that has been compiled.
        module: that the function calls; where its attributes, modes or layers have changed since,
            the code does not hold.
        graph: its name.
    """

    def __init__(self, code: CompiledFunction, module: nn.Module, graph: str) -> None:
        self.code, self.graph = code, graph
        self._function, self._module = held(code.function), ModuleTemplate(module)

    def __call__(self, function: Callable[..., Any], trees: Sequence[Any]) -> Any:
        """What the code gives for a call like its own; None for others."""
        if not same_call(function, self._function) or not self._module.is_current():
            return None
        return self.code.run(*trees)


@dataclass
class Course:
    """What was decided so far, and what leads to the next decision."""

    graph: str = ""
    """Name of the graph that is compiled; empty where none is."""
    name: str = ""
    """Of the call that is, or where none is of one for which it did not pay."""
    last: tuple[Callable[..., Any], Any] | None = None
    """The last call, in this process, that was taken as it is."""
    before: str = ""
    """Its name, where it was in the run that goes on here."""
    like: int = 0
    """Calls in a row that were like the last."""
    tries: int = 0
    calls: int = 0
    """Of compiled code."""
    over: bool = False
    """Whether nothing more will be decided."""
    failed: bool = False
    """Whether compiling, or compiled code, failed."""

    def __copy__(self) -> Course:
        """As ``copy.copy`` makes it, sooner: one is made at every step."""
        found = Course()
        vars(found).update(vars(self))
        return found

    def name_of_last(self) -> str:
        """A name for the last call that was taken as it is, in another process too."""
        return self.before if self.last is None else digest_of(*self.last)

    @property
    def checks(self) -> bool:
        """Whether what compiled code gave at this call of it is held to the function.

        It is so at each of the first, at powers of two, and then at one of so many, by a sequence
        that keeps time with nothing.
        """
        return is_checked(self.calls)

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = {name: value for name, value in vars(self).items() if name != "before"}
        return {**kept, "last": self.name_of_last()}


def is_checked(calls: int) -> bool:
    """Whether the last of so many calls of compiled code is held to the function; see `Course`."""
    early = calls <= _AT_FIRST or not calls & (calls - 1)
    return early or calls * _GOLDEN % 2**32 < 2**32 // _EVERY


def said(error: Exception) -> str:
    """Why, in a line."""
    if isinstance(error, CompilationError | SettingError | StorageError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
