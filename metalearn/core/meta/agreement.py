"""Whether an engine's meta-gradient is that of a plain loop, parameter by parameter.

Axes: T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core.float64 import has_float64
from metalearn.core.memory import is_out_of_memory
from metalearn.core.meta.task_mean import MetaGradient
from metalearn.core.tree import distances, leaves, tree_map
from metalearn.errors import SettingError
from metalearn.types import Params, TaskBatch

__all__ = ["Trials", "doubled"]

_TOLERANCE = 0.05  # relative: a ReLU within rounding of zero can move one task by 1e-3
_TOLERANCE_DOUBLE = 1e-6
_FLOOR, _FLOOR_DOUBLE = 1e-3, 1e-6  # of the whole gradient: below it, a parameter's is rounding

Attempt = Callable[[str, Params, TaskBatch], MetaGradient]
"""A trial meta-gradient by an engine, at given parameters, on given tasks."""


class Trials:
    """Trials of engines on copies in float64 where the loss takes those, else as things are.

    In float32 an engine can only be held to a few per cent, within which a padding row that moves
    hides; in float64 to a millionth.

    Args:
        attempt: takes a meta-gradient by an engine.
        params: where it is taken.
        tasks: two are enough.
    """

    def __init__(self, attempt: Attempt, params: Params, tasks: TaskBatch) -> None:
        self._attempt, self._given = attempt, (params, tasks)
        self._is_double = all(has_float64(leaf.device) for leaf in leaves((params, tasks)))
        self._doubled = (doubled(params), doubled(tasks)) if self._is_double else self._given
        self._plain: dict[bool, MetaGradient] = {}

    def __call__(self, engine: str) -> MetaGradient:
        """The meta-gradient of an engine; in the precision that is compared, where that can be."""
        if self._is_double:
            try:
                return self._attempt(engine, *self._doubled)
            except SettingError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
        return self._attempt(engine, *self._given)

    @property
    def note(self) -> str:
        """What to say of the comparison, in words; empty where it is in float64."""
        if self._is_double:
            return ""
        narrow = [leaf.device for leaf in leaves(self._given) if not has_float64(leaf.device)]
        what = f"{narrow[0].type}" if narrow else "this loss"
        return f"held to a plain loop to {_TOLERANCE:.0%} alone: {what} does not run in float64"

    def disagreement(self, engine: str, found: MetaGradient) -> str:
        """Where an engine's trial is not what the loop gives, in words; empty where it is."""
        exact = self._takes_double()
        if not exact:  # the trial may have been on the copies
            found = self._attempt(engine, *self._given)
        wanted = self._loop(exact)
        gaps = distances(
            (found.grads, found.optimizer_grads),
            (wanted.grads, wanted.optimizer_grads),
            floor=_FLOOR_DOUBLE if exact else _FLOOR,
        )
        name, gap = max(gaps.items(), key=lambda item: math.inf if item[1] != item[1] else item[1])
        if gap <= (_TOLERANCE_DOUBLE if exact else _TOLERANCE):
            return ""
        name = name.partition(".")[2] if name.startswith("0.") else "the inner optimiser"
        return f"differs from a plain loop by {gap:.1g} in {name} on this loss"

    def _takes_double(self) -> bool:
        """Whether the loop runs in float64 throughout on the copies; found out once."""
        if self._is_double and True not in self._plain:
            try:
                with _Precision() as seen:
                    self._plain[True] = self._attempt("loop", *self._doubled)
                self._is_double = not seen.lower
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._is_double = False
        return self._is_double

    def _loop(self, double: bool) -> MetaGradient:
        if double not in self._plain:
            self._plain[double] = self._attempt("loop", *self._given)
        return self._plain[double]


def doubled(values: Any) -> Any:
    """A copy with floating leaves in float64."""
    return tree_map(lambda x: x.detach().double() if x.is_floating_point() else x, values)


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether something in float64 is made less precise."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lower = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        made, given = _floating(result), _floating((args, kwargs))
        if made - {torch.float64}:  # a mask that is made float32 loses nothing
            self.lower |= torch.float64 in given
        return result


def _floating(values: Any) -> set[torch.dtype]:
    """Kinds of floating-point tensors among the leaves."""
    tensors = (leaf for leaf in leaves(values) if isinstance(leaf, Tensor))
    return {leaf.dtype for leaf in tensors if leaf.is_floating_point()}
