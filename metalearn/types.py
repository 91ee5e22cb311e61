"""Types that all rooms share.

Axes: T tasks, N samples of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import get_annotations
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metalearn.misfits import advise

__all__ = [
    "Batch",
    "LossFn",
    "Params",
    "SampleDistribution",
    "Split",
    "TaskBatch",
    "TaskDistribution",
    "TaskLoss",
    "offers",
]

Params = Any
"""Any pytree of floating-point tensors."""

Batch = Any
"""Any pytree of tensors whose leading axis is the sample axis; usually ``(inputs, targets)``."""

LossFn = Callable[[Params, Batch], Tensor]
"""Mean loss of a batch: a scalar, differentiable in the parameters."""

TaskLoss = Callable[[Params, Batch, Batch], Tensor]
"""Loss of a task, of parameters, support and query set: a scalar, differentiable in the
parameters."""

Split = Literal["train", "validation", "test"]


class _SupportAndQuery(NamedTuple):
    support: Batch
    query: Batch


class TaskBatch(_SupportAndQuery):
    """A batch of T tasks: a pair whose leaves have a leading task axis ``[T, N, ...]``.

    Args:
        support: what a task is learnt from.
        query: what it is scored on.
        class_ids: ``[T, way]``, int64: which class of the whole data set each label of a task is,
            where the source knows. It is no part of the pair: unpacking gives support and query,
            and functions over trees (slices of tasks too) keep those two alone.
    """

    class_ids: Tensor | None

    def __new__(cls, support: Batch, query: Batch, class_ids: Tensor | None = None) -> TaskBatch:
        """Make the pair, and keep ``class_ids`` beside it."""
        batch = super().__new__(cls, support, query)
        batch.class_ids = class_ids
        return batch

    def _replace(self, **fields: Any) -> TaskBatch:  # type: ignore[override]
        known = {"support": self.support, "query": self.query, "class_ids": self.class_ids}
        return TaskBatch(**{**known, **fields})


def _pair_advice(value: Any) -> str | None:
    pair = isinstance(value, tuple | list) and len(value) == 2
    return "a TaskBatch is needed: metalearn.types.TaskBatch(support, query)" if pair else None


advise(TaskBatch, _pair_advice)


@runtime_checkable
class TaskDistribution(Protocol):
    """What a trainer asks of a source of tasks.

    A task is addressed by (seed, split, index): the same address gives the same task on any
    machine, in any batch, in any order. ``sample`` returns ``TaskBatch((x, y), (x, y))`` on
    ``device`` with inputs ``[T, N, *input_shape]`` (float32) and targets ``[T, N]`` (int64 class
    indices, classification) or ``[T, N, outputs]`` (float32, regression). Where the outputs of a
    task depend on its split, a mapping ``outputs_by_split`` gives them for each, and ``outputs``
    those of training.

    A source that says ``thread_safe = True`` is drawn from by several threads at once, where that
    makes a training faster: ``sample`` (and ``training_samples``) then keep no state that one draw
    leaves to the next, share no generator, open file or buffer between threads, and depend on
    nothing that belongs to a thread, such as the default device. One that does not say so is drawn
    from by the training's own thread alone, and so is a subclass with a ``sample`` of its own that
    does not say it anew.
    """

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """What the targets are."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        ...

    @property
    def outputs(self) -> int:
        """Classes of a task (its way), or the size of a regression target."""
        ...

    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        """Tasks ``indices`` of a split."""
        ...


def _advice(value: Any) -> str | None:
    accepted = "a TaskDistribution is needed, such as FewShotTasks of labelled pictures"
    if all(hasattr(value, name) for name in ("splits", "class_names", "labels")):
        return f"{accepted}: metalearn.tasks.FewShotTasks(data, way=5, shot=1)"
    if hasattr(value, "splits") and hasattr(value, "take"):
        return f"{accepted}; EnsembleTrainer and PerSampleTrainer train on samples"
    return accepted if hasattr(value, "__len__") or hasattr(value, "__getitem__") else None


advise(TaskDistribution, _advice)


@runtime_checkable
class SampleDistribution(Protocol):
    """What learners that are trained on samples ask of a source of tasks, beside the tasks."""

    @property
    def training_classes(self) -> int:
        """How many classes there are in training, over all tasks."""
        ...

    def training_samples(
        self, indices: Sequence[int], size: int, *, device: torch.device | str = "cpu"
    ) -> Batch:
        """Batches ``indices``: inputs ``[T, size, *input_shape]`` and classes ``[T, size]``, int64.

        A batch is addressed as a task is: the same index gives the same batch.
        """
        ...


def offers(value: object, protocol: type) -> bool:
    """Whether a value has all that a protocol names, by whatever way.

    ``isinstance`` says no, from Python 3.12 on, to what an object hands on by ``__getattr__``, such
    as one that is wrapped around a source of tasks. A member that is None is none.
    """
    return all(getattr(value, name, None) is not None for name in _members(protocol))


@cache
def _members(protocol: type) -> frozenset[str]:
    """What a protocol and those that it extends name."""
    parts = [base for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for part in parts for name in (*vars(part), *get_annotations(part))}
    return frozenset(name for name in names if not name.startswith("_"))
