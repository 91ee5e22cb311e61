"""Hyperparameters of inner optimisers: numbers, or tensors that are learnt.

A step size may be one for all, one for each parameter, of each element, or of each inner step; the
others are one number each.
Axes: K inner steps, R rows that are stacked (pairs of a member and a task).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.tree import check_floating, leaf_names, leaves
from metalearn.errors import SettingError

__all__ = [
    "Hyperparameters",
    "LearningRate",
    "check_learning_rate",
    "check_not_negative",
    "check_positive",
    "check_unit_interval",
]

LearningRate = float | Tensor | Any
"""A number; a tensor, a scalar or ``[K]``; or a tree of tensors, one for each leaf that adapts."""

RateKind = Literal["constant", "elements", "steps"]


@dataclass(frozen=True)
class Hyperparameters:
    """Values by name, ``lr`` among them; those that are tensors or trees of tensors are learnt."""

    values: dict[str, Any]
    kinds: tuple[RateKind, ...] | None = None
    """Of each rate of a tree; None until the parameters are known."""
    stacked: bool = False
    """Whether every tensor has R in front: a value for each row of the leaves ``[R, ...]``."""

    @property
    def learnt(self) -> Any:
        """The rates, where nothing else is learnt; else a dict of what is, by name."""
        found = {name: value for name, value in self.values.items() if _is_learnt(value)}
        return found["lr"] if list(found) == ["lr"] else found or ()

    @property
    def has_schedule(self) -> bool:
        """Whether a step has to know how many were before it."""
        lr = self.values["lr"]
        if isinstance(lr, Tensor):
            return lr.dim() > self.stacked
        return _is_learnt(lr) and (self.kinds is None or "steps" in self.kinds)

    @property
    def schedule_lengths(self) -> frozenset[int]:
        """K of the rates that have a value for each inner step."""
        lr, axis = self.values["lr"], int(self.stacked)
        if isinstance(lr, Tensor):
            return frozenset(lr.shape[axis : axis + 1])
        pairs = zip(self.kinds or (), leaves(lr))
        return frozenset(rate.shape[axis] for kind, rate in pairs if kind == "steps")

    def replaced(self, learnt: Any, *, stacked: bool = False) -> Hyperparameters:
        """The same with other values of what is learnt."""
        names = [name for name, value in self.values.items() if _is_learnt(value)]
        new = {"lr": learnt} if names == ["lr"] else learnt
        if not isinstance(new, dict) or set(new) != set(names):
            raise SettingError("learnt", learnt, f"a dict of {', '.join(names)} is needed")
        check_floating(learnt, "learnt")
        count = len(leaves(new["lr"])) if "lr" in new else 0
        kinds = self.kinds if self.kinds is not None and len(self.kinds) == count else None
        return replace(self, values={**self.values, **new}, kinds=kinds, stacked=stacked)

    def matched(self, names: Sequence[str], values: Sequence[Tensor]) -> Hyperparameters:
        """The same for the parameters that adapt.

        Raises:
            SettingError: step sizes named otherwise, or of shapes that do not fit.
        """
        lr = self.values["lr"]
        if not _is_learnt(lr) or isinstance(lr, Tensor):
            return self
        if isinstance(lr, dict) and leaf_names(lr) != list(names):
            accepted = f"one for each of {list(names)}, in that order"
            raise SettingError("lr", leaf_names(lr), accepted)
        return replace(self, kinds=self._kinds(values, names))

    def of(self, name: str) -> Callable[[Tensor], Any]:
        """A hyperparameter for a leaf, in a shape that goes with it."""
        return self.for_leaves(self.values[name])

    def for_leaves(self, value: Any) -> Callable[[Tensor], Any]:
        """A number, or a value for each row, in a shape that goes with a leaf."""
        if not self.stacked or not isinstance(value, Tensor):
            return lambda leaf: value
        return lambda leaf: _beside(value, leaf)

    def uses(self, name: str) -> bool:
        """Whether it may be other than 0; tensors are not looked at."""
        value = self.values[name]
        return isinstance(value, Tensor) or bool(value)

    def rates(self, values: Sequence[Tensor], count: int) -> list[Any]:
        """The step size of each leaf after ``count`` steps; beyond K the last one holds."""
        lr = self.values["lr"]
        if isinstance(lr, int | float):
            return [lr] * len(values)
        if isinstance(lr, Tensor):
            kind: RateKind = "steps" if lr.dim() > self.stacked else "constant"
            rate = self._at(lr, kind, count)
            if not self.stacked:
                return [rate] * len(values)
            return [_beside(rate, leaf) for leaf in values]
        kinds = self.kinds or self._kinds(values)
        found = [self._at(rate, kind, count) for rate, kind in zip(leaves(lr), kinds)]
        if not self.stacked:
            return found
        return [_beside(rate, leaf) for rate, leaf in zip(found, values)]

    def _at(self, rate: Tensor, kind: RateKind, count: int) -> Tensor:
        if kind != "steps":
            return rate
        axis = int(self.stacked)
        return rate.select(axis, min(count, rate.shape[axis] - 1))

    def _kinds(
        self, values: Sequence[Tensor], names: Sequence[str] | None = None
    ) -> tuple[RateKind, ...]:
        """Kinds of the rates of a tree, for leaves without rows."""
        rates = leaves(self.values["lr"])
        if len(rates) != len(values):
            accepted = f"{len(values)} are needed, one a leaf"
            raise SettingError("lr", f"{len(rates)} tensors", accepted)
        names = names or [str(index) for index in range(len(rates))]
        shapes = [tuple(rate.shape[int(self.stacked) :]) for rate in rates]
        found = [_kinds_of(r, tuple(p.shape), n) for r, p, n in zip(shapes, values, names)]
        stepwise = ("steps",) in found
        return tuple("steps" if stepwise and "steps" in k else k[0] for k in found)


def check_learning_rate(lr: LearningRate) -> None:
    """Refuse what is no step size.

    A number or a scalar tensor is above 0, a schedule ``[K]`` of at least 0; in a tree, whose rates
    are directions too, every element is finite.
    """
    if isinstance(lr, Tensor):
        if lr.dim() > 1 or not lr.numel():
            accepted = "a number, a scalar tensor or one with a value for each inner step is needed"
            raise SettingError("lr", list(lr.shape), accepted)
        if lr.dim():
            _check("lr", lr, least=0, shape=None)
        else:
            _check("lr", lr, above=0)
    elif isinstance(lr, int | float):
        check_number("lr", lr, above=0)
    elif not leaves(lr) or not all(isinstance(rate, Tensor) for rate in leaves(lr)):
        raise SettingError("lr", lr, "a number, a scalar tensor or a tree of tensors is needed")
    else:
        for name, rate in zip(leaf_names(lr), leaves(lr)):
            _check(f"lr[{name}]", rate, shape=None)


def check_unit_interval(setting: str, value: Any) -> None:
    """Refuse what is no number in [0, 1)."""
    _check(setting, value, least=0, below=1)


def check_not_negative(setting: str, value: Any) -> None:
    """Refuse what is no number of at least 0."""
    accepted = "a number of at least 0 is needed"
    _check(setting, value, least=0, infinite=True, accepted=accepted)


def check_positive(setting: str, value: Any) -> None:
    """Refuse what is no number above 0."""
    _check(setting, value, above=0, infinite=True)


def _check(setting: str, value: Any, **limits: Any) -> None:
    """`check_number`, of tensors that can be learnt: of floating-point numbers."""
    if isinstance(value, Tensor):
        check_floating(value, setting)
    check_number(setting, value, **limits)


def _is_learnt(value: Any) -> bool:
    return not isinstance(value, int | float)


def _kinds_of(rate: Sequence[int], shape: Sequence[int], name: str) -> tuple[RateKind, ...]:
    """What a rate may be by its shape: more than one for a vector that has K elements itself."""
    if not rate:
        return ("constant",)
    if len(rate) == len(shape) == 1 and rate == shape:
        return ("elements", "steps")
    if len(rate) == len(shape) and _fits(rate, shape):
        return ("elements",)
    if len(rate) == 1 or (len(rate) == len(shape) + 1 and _fits(rate[1:], shape)):
        return ("steps",)
    accepted = (
        f"a scalar, a value for each inner step, or the shape {list(shape)} of the parameter, "
        "which may have the inner steps in front, is needed"
    )
    raise SettingError(f"lr[{name}]", list(rate), accepted)


def _fits(rate: Sequence[int], shape: Sequence[int]) -> bool:
    return all(r in (1, s) for r, s in zip(rate, shape))


def _beside(value: Tensor, leaf: Tensor) -> Tensor:
    """``[R]`` with as many axes as the leaf ``[R, ...]``; ``[R, ...]`` has them."""
    rows = value.reshape(-1, *[1] * (leaf.dim() - 1)) if value.dim() == 1 else value
    return rows.to(leaf.dtype)
