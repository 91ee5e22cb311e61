"""How a meta-learner adapts: settings that can be checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from metalearn.core import Engine, Implicit, InnerOptimizer, Method, adam, sgd
from metalearn.core.checks import check_number
from metalearn.core.memory import parse_bytes
from metalearn.core.module.functionalize import Norm
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import check_fields

__all__ = ["MAML"]

InnerName = Literal["sgd", "adam"]
_OPTIMIZERS: dict[str, Callable[[float], InnerOptimizer]] = {"sgd": sgd, "adam": adam}


@dataclass(frozen=True)
class MAML:
    """How a learner adapts, and how the gradient through adaptation is taken.

    Attributes:
        inner_lr: step size of the inner loop, a number above 0; a learner does not learn it.
        inner_steps: inner steps in training, at least 0.
        eval_steps: inner steps in validation and test, at least 0.
        first_order: ignore second derivatives (FOMAML); the same as ``method="first_order"``.
        method: ``"reverse"``, ``"mixed"`` (both exact), ``"first_order"``, ``"implicit"``; see
            `metalearn.core.meta_gradient`. ``"auto"`` is exact.
        engine: ``"batched"``, ``"vmap"``, ``"loop"``, or ``"auto"``; all give the same gradient.
        inner_optimizer: ``"sgd"`` or ``"adam"``.
        frozen: shell-style pattern, or several, over names of parameters that the inner loop
            leaves alone (``"blocks.*"`` adapts the head alone).
        norm: None, or what to make of batch and instance norms: ``"batch_stats"`` (of the batch
            at hand, none kept), ``"group"`` (GroupNorm).
        chunk_size: tasks at a time; None takes a whole meta-batch, or what fits ``memory``.
        memory: what a meta-gradient may take, for example ``"8GB"``; None is what the device has
            free. With ``method="auto"`` it decides between reverse and mixed.
        regularization: λ of the implicit method's inner loss L(φ) + λ/2·‖φ − θ‖², above 0.
        cg_iterations: conjugate gradient iterations of the implicit method, at least 1.

    Raises:
        SettingError: a value out of range.
    """

    inner_lr: float = 0.4
    inner_steps: int = 1
    eval_steps: int = 3
    first_order: bool = False
    method: Method = "auto"
    engine: Engine = "auto"
    inner_optimizer: InnerName = "sgd"
    frozen: str | Sequence[str] | None = None
    norm: Norm | None = None
    chunk_size: int | None = None
    memory: str | int | None = None
    regularization: float = 1.0
    cg_iterations: int = 5

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole("inner_steps", self.inner_steps, 0, 2**63 - 1)
        check_whole("eval_steps", self.eval_steps, 0, 2**63 - 1)
        if self.chunk_size is not None:
            check_whole("chunk_size", self.chunk_size, 1)
        if not isinstance(self.inner_lr, int | float):
            raise SettingError(
                "inner_lr",
                type(self.inner_lr).__name__,
                "a finite number above 0 is needed: a learner does not learn step sizes; "
                "metalearn.core.meta_gradient gives the gradients of those of sgd(lr=tensor)",
            )
        check_number("inner_lr", self.inner_lr, above=0)
        check_whole("cg_iterations", self.cg_iterations, 1)
        check_number("regularization", self.regularization, above=0)
        if self.memory is not None:
            parse_bytes(self.memory)
        choices = (
            ("inner_optimizer", InnerName),
            ("norm", Norm),
            ("method", Method),
            ("engine", Engine),
        )
        for name, known in choices:
            value = getattr(self, name)
            if value not in get_args(known) and not (name == "norm" and value is None):
                accepted = ", ".join(get_args(known))
                raise SettingError(name, value, f"one of {accepted} is needed")
        if self.first_order and self.method not in ("auto", "first_order"):
            raise SettingError("method", self.method, "auto is needed with first_order=true")

    @property
    def wanted_method(self) -> Method:
        """The method, ``first_order`` taken into account."""
        return "first_order" if self.first_order else self.method

    @property
    def implicit(self) -> Implicit:
        """Settings of the implicit method."""
        return Implicit(self.regularization, self.cg_iterations)

    def optimizer(self) -> InnerOptimizer:
        """The inner optimiser."""
        return _OPTIMIZERS[self.inner_optimizer](self.inner_lr)
