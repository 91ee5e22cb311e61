"""The calls of a loss that take parameters, met where they are made.

No module has to be known: whatever the loss calls with a parameter as an argument is offered, if it
is an operation with a rule; everything else runs as it is. A parameter is known by identity, and so
are its rows and its transpose, as packed projections of attention take them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import metalearn.core.samples.rules  # noqa: F401  (torch's own operations)
from metalearn.core._functorch import maybe_current_level
from metalearn.core.ops.decomposed_operations import decomposed_operation
from metalearn.core.samples.gradient_totals import RowSlice
from metalearn.core.samples.layer_rules import LayerCall, LayerRule, rule_of
from metalearn.core.samples.sample_gradients import SampleGradients
from metalearn.errors import SettingError

__all__ = ["Answer", "LayerCalls", "ParameterView"]


class ParameterView(NamedTuple):
    """What a call was given of a parameter: some of its rows, or the transpose of these."""

    number: int
    """Which of the parameters."""
    first: int
    stop: int
    length: int
    """Rows ``first`` to ``stop`` of ``length``."""
    transposed: bool = False

    def of(self, parameter: Tensor) -> Tensor:
        """The same of another value of the parameter."""
        rows = parameter if self._is_whole else parameter[self.first : self.stop]
        return rows.mT if self.transposed else rows

    def widened(self, gradients: SampleGradients) -> SampleGradients:
        """Gradients of the parameter from those of the view."""
        gradients = gradients.transposed() if self.transposed else gradients
        return gradients if self._is_whole else RowSlice(gradients, self.first, self.length)

    @property
    def _is_whole(self) -> bool:
        return (self.first, self.stop) == (0, self.length)


Answer = Callable[[str, LayerCall, Sequence[ParameterView | None]], Any]
"""Is given an operation's name, its call and which of the parameters are known; gives the output,
or None to let the call run."""


class LayerCalls(TorchFunctionMode):
    """Offers calls that take one of ``values`` to ``answer``.

    Args:
        values: the tensors themselves that the loss is given.
        answer: see `Answer`; None where `offer` does otherwise.
        level: of transforms of torch.func, at which calls are offered; 0 outside of all.
    """

    def __init__(self, values: Sequence[Tensor], answer: Answer | None, level: int) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, ParameterView]] = {}
        for i, value in enumerate(values):
            length = value.shape[0] if value.dim() else 1
            self._remember(value, ParameterView(i, 0, length, length))
        self._answer, self._level = answer, level

    def __torch_function__(
        self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = decomposed_operation(function, args, kwargs, within=self)
        if plain is not None:
            return plain
        rule, parts = rule_of(function), _VIEWS.get(function)
        if rule is None and parts is None:
            inside = _LOOKED_INTO.get(function)
            if inside is None:
                return self.run(function, args, kwargs)
            with self:
                return inside(*args, **kwargs)
        known = any(id(x) in self._known for x in args)
        known = known or any(id(x) in self._known for x in kwargs.values())
        # a transform inside of the loss has tensors of its own, which torch knows how to treat;
        # under no_grad no gradient will come
        if not known or not self.is_own_level() or not torch.is_grad_enabled():
            return self.run(function, args, kwargs)
        answer = None if rule is None else self.answered(rule, function, args, kwargs)
        if answer is None:
            answer = self.run(function, args, kwargs)
            if parts is not None:
                self._follow(parts, answer, *args, **kwargs)
        return answer

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What a call gives that is not answered."""
        return function(*args, **kwargs)

    def is_own_level(self) -> bool:
        """Whether no transform of torch.func inside of the loss is under way."""
        return (maybe_current_level() or 0) == self._level

    def answered(self, rule: LayerRule, function: Any, args: Any, kwargs: Any) -> Any:
        """The answer to a call with a rule that takes a parameter; None to run it."""
        call = rule(*args, **kwargs)
        if call is None:
            return None
        name = getattr(function, "__name__", str(function))
        _check_call(name, call)
        views = [self._view(parameter) for parameter in call.parameters]
        offered = any(view is not None for view in views)
        return self.offer(name, call, views) if offered else None

    def offer(self, name: str, call: LayerCall, views: Sequence[ParameterView | None]) -> Any:
        """The output of a call that takes a parameter; None to let it run."""
        return None if self._answer is None else self._answer(name, call, views)

    def _view(self, tensor: Tensor | None) -> ParameterView | None:
        known = self._known.get(id(tensor))
        return None if known is None else known[1]

    def _remember(self, tensor: Tensor, view: ParameterView) -> None:
        self._known[id(tensor)] = tensor, view  # with the tensor, so that no other has its id

    def _follow(self, parts: Any, found: Any, source: Any, *args: Any, **kwargs: Any) -> None:
        """Remember what a view of a parameter is."""
        view = self._view(source)
        if view is not None:
            for tensor, part in parts(view, source, found, *args, **kwargs):
                self._remember(tensor, part)


def _check_call(name: str, call: Any) -> None:
    if not isinstance(call, LayerCall):
        accepted = "a LayerCall or None is what a rule gives"
        raise SettingError(f"layer rule of {name}", type(call).__name__, accepted)


Followed = Sequence[tuple[Tensor, ParameterView]]


def _rows(view: ParameterView, source: Tensor, found: Any, *args: Any, **kwargs: Any) -> Followed:
    """Of ``split`` and ``chunk``."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if axis not in (0, -source.dim()) or view.transposed:
        return ()
    followed, first = [], view.first
    for part in found:
        followed.append((part, view._replace(first=first, stop=first + len(part))))
        first += len(part)
    return followed


def _sliced(view: ParameterView, source: Tensor, found: Tensor, index: Any = None) -> Followed:
    if not isinstance(index, slice) or source.dim() == 0 or view.transposed:
        return ()
    first, stop, step = index.indices(len(source))
    if step != 1:
        return ()
    return [(found, view._replace(first=view.first + first, stop=view.first + max(first, stop)))]


def _turned(
    view: ParameterView, source: Tensor, found: Tensor, *at: Any, **by_name: Any
) -> Followed:
    axes = [axis % 2 for axis in (*at, *by_name.values()) if isinstance(axis, int)]
    if source.dim() != 2 or sorted(axes) not in ([], [0, 1]):
        return ()
    return [(found, view._replace(transposed=not view.transposed))]


_VIEWS: dict[Any, Callable[..., Followed]] = {
    torch.Tensor.split: _rows, torch.split: _rows,
    torch.Tensor.chunk: _rows, torch.chunk: _rows,
    torch.Tensor.__getitem__: _sliced,
    torch.Tensor.t: _turned, torch.t: _turned,
    torch.Tensor.transpose: _turned, torch.transpose: _turned,
    torch.Tensor.T.__get__: _turned,  # type: ignore[attr-defined]
    torch.Tensor.mT.__get__: _turned,  # type: ignore[attr-defined]
}  # fmt: skip


def _seen_inside(function: Any) -> Callable[..., Any]:
    """The same function of torch, whose own calls a mode is told of.

    Under a mode it hands itself on as a whole, and what it calls then goes unseen.
    """
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    seen = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    seen.__kwdefaults__ = function.__kwdefaults__
    return seen


_LOOKED_INTO: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _seen_inside(F.multi_head_attention_forward)
}
