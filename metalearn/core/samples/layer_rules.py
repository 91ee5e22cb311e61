"""What is known of operations with parameters: how gradients of single samples follow from a call.

A loss is met at its calls. Where one of them is an operation with a rule, and takes a parameter,
the rule says how to run it and what makes up the parameter's gradients; whatever has no rule is
taken by ``vmap(grad)``. `metalearn.core.samples.rules` has those of torch's own operations.
Axes: N samples.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from metalearn.core._functorch import (
    TransformType,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_level,
    retrieve_all_functorch_interpreters,
)
from metalearn.core.samples.sample_gradients import SampleGradients
from metalearn.errors import SettingError
from metalearn.signatures import checked

__all__ = [
    "GradientsOf",
    "LayerCall",
    "LayerRule",
    "differs_by_sample",
    "register_layer_rule",
    "rule_of",
    "rules_version",
    "telling_samples",
]

GradientsOf = Callable[..., SampleGradients]
"""``gradients(dz, *inputs)`` with N in front of the output's gradient and of each input."""

Operation = TypeVar("Operation", bound=Callable[..., Any])


@dataclass(frozen=True)
class LayerCall:
    """One call of an operation inside the loss of one sample, as its rule read it."""

    run: Callable[..., Tensor]
    """``run(*parameters)``: the output of the call with these in place of ``parameters``."""
    inputs: Sequence[Tensor]
    """What the gradients need of what went in; not to be written into after the call."""
    parameters: Sequence[Tensor | None]
    """The arguments of the call that may be parameters, None for one that was left out."""
    gradients: Sequence[GradientsOf]
    """For each of ``parameters`` what makes up its gradients: `OuterProducts`, `IndexedRows`,
    `FormedGradients` or a `SampleGradients` of one's own, without a normaliser."""
    quick: bool = False
    """Whether these also form the gradients of matrices quicker than ``vmap(grad)`` does, or where
    it cannot; then `per_sample_gradients` goes by them too."""

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise SettingError("run", self.run, "a function of the parameters is needed")
        for name, fits in _FITS.items():
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not all(map(fits, values)):
                what = "functions" if name == "gradients" else "tensors"
                raise SettingError(name, values, f"a tuple of {what} is needed")
        if len(self.gradients) != len(self.parameters):
            got = f"{len(self.gradients)} for {len(self.parameters)} parameters"
            raise SettingError("gradients", got, "one for each of the parameters is needed")


LayerRule = Callable[..., LayerCall | None]
"""Is given the arguments of a call; None leaves the call to torch."""

_FITS: dict[str, Callable[[Any], bool]] = {
    "inputs": lambda value: isinstance(value, Tensor),
    "parameters": lambda value: value is None or isinstance(value, Tensor),
    "gradients": callable,
}
_RULES: dict[Any, LayerRule] = {}
_TOLD: ContextVar[Set[int] | None] = ContextVar("tensors that follow from samples", default=None)
_version = 0


@checked
def register_layer_rule(operation: Operation, rule: LayerRule) -> Operation:
    """Let per-sample norms and clipping do without the gradients of an operation's parameters.

    For an operation with z = f(x, w) the rule says, for one call inside the loss of one sample,
    which tensors went in, which may be parameters, and how the parameters' gradients for N samples
    come from the inputs ``[N, *x]`` and the output's gradients ``[N, *z]``, both with their sample
    axis in front::

        def scaled_linear(x, weight, scale=1.0):
            return scale * (x @ weight.T)

        def rule(x, weight, scale=1.0):
            return LayerCall(
                run=lambda weight: scale * (x @ weight.T),
                inputs=(x,),
                parameters=(weight,),
                gradients=(lambda dz, x: OuterProducts(scale * dz, x),),
            )

        scaled_linear = register_layer_rule(scaled_linear, rule)

    The rule is trusted: `check_per_sample` compares what follows from it with a loop of ordinary
    backward passes. A parameter that is used several times has the exact norm of the sum.

    Args:
        operation: a function of torch, such as ``torch.bilinear``, or one of one's own.
        rule: see `LayerCall`; a second one for the same operation takes the place of the first.

    Returns:
        The operation to be called from then on: a function of torch itself; one of one's own in a
        wrapper by which its calls are seen.

    Raises:
        SettingError: an operation or a rule that cannot be called. What a rule gives back is looked
            at when it is used.
    """
    global _version
    for name, value in (("operation", operation), ("rule", rule)):
        if not callable(value) or isinstance(value, torch.nn.Module):
            raise SettingError(name, value, "a function is needed")
    seen = _seen_by_modes(operation) if _is_own(operation) else operation
    _RULES[seen] = rule
    _version += 1
    return seen  # type: ignore[return-value]


rule_of: Callable[[Any], LayerRule | None] = _RULES.get
"""The rule of a function, or None; asked for at every operation of a loss."""


def rules_version() -> int:
    """Another number after each registration."""
    return _version


def differs_by_sample(tensor: Any) -> bool:
    """Inside the loss of one sample, or of a whole batch: whether the tensor follows from a sample.

    What follows from parameters alone may be as large as a parameter; its gradients by sample are
    not what a rule should ask for.
    """
    if not isinstance(tensor, Tensor):
        return False
    told = _TOLD.get()
    if told is not None:
        return id(tensor) in told
    top = retrieve_all_functorch_interpreters()[-1]
    samples = top.level() - (top.key() == TransformType.Grad)  # gradients are taken inside of vmap
    if maybe_get_level(tensor) == samples + 1:
        tensor = get_unwrapped(tensor)
    return is_batchedtensor(tensor) and maybe_get_level(tensor) == samples


@contextmanager
def telling_samples(tensors: Set[int]) -> Iterator[None]:
    """A block in which tensors that follow from samples are known by their ``id``."""
    token = _TOLD.set(tensors)
    try:
        yield
    finally:
        _TOLD.reset(token)


def _is_own(operation: Any) -> bool:
    """Whether it is a Python function of the user, whose calls torch tells nobody of."""
    own = isinstance(operation, types.FunctionType)
    return own and str(operation.__module__).partition(".")[0] != "torch"


def _seen_by_modes(operation: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(operation, "_calls_are_seen"):
        return operation

    @functools.wraps(operation)
    def seen(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(seen, tensors, *args, **kwargs)
        return operation(*args, **kwargs)

    seen._calls_are_seen = True  # type: ignore[attr-defined]
    return seen
