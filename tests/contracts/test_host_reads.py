"""How often a training step waits for a device: each read of a value that follows from parameters.

Labels and other data count for nothing here: on a device they are read once, at the first step.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metalearn.trainers.loop.loop import Loop
from tests.contracts.trainers import TRAINERS

READERS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)
"""Read without an operation of torch where a tensor is on the processor already."""
TWICE = {
    "private": "which gradients are finite",
    "private_noisy": "the same",
    "private_meta": "the same",
    "hyper_learning_rates": "a rate is held to its range",
    "hyper_distilled": "the same, of the rate that is distilled with the data",
}
"""Trainers that read twice, and what else than losses and norms."""


def places(tree: Any) -> set[int]:
    """Where the plain tensors of a tree have their values."""
    tensors = [value for value in tree_leaves(tree) if isinstance(value, Tensor)]
    plain = [value for value in tensors if value.layout == torch.strided]
    found = set()
    for value in plain:
        try:
            found.add(int(value.untyped_storage()._cdata))
        except (NotImplementedError, RuntimeError):  # wrapped by a transform, and seen below it
            continue
    return found


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what is computed from parameters."""

    def __init__(self, start: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.following, self.reads = places(start), list[str]()
        self._kept: list[Any] = []  # so that no memory is used again

    def note(self) -> None:
        stack = traceback.extract_stack()
        own = [frame for frame in stack if "/metalearn/" in frame.filename] or stack
        self.reads.append(f"{own[-1].filename}:{own[-1].lineno}")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = args, kwargs or {}
        follows = bool(places(given) & self.following)
        if follows and _reads(func, args):
            self.note()
        found = func(*given[0], **given[1])
        if follows:
            self.following |= places(found)
            self._kept.append(found)
        return found


def _reads(func: Any, args: Sequence[Any]) -> bool:
    """Whether what an operation gives is read by the host, if only for its shape."""
    if func is torch.ops.aten.index.Tensor:  # of indices masks alone
        return any(v is not None and v.dtype in (torch.bool, torch.uint8) for v in args[1])
    by_values = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return bool(by_values & set(func.tags))


class Methods(TorchFunctionMode):
    """Sees what is read without an operation."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in READERS or not places(args) & self._operations.following:
            return func(*args, **(kwargs or {}))
        self._operations.note()
        found = func(*args, **(kwargs or {}))
        if not isinstance(found, Tensor):
            return found
        with torch.utils._python_dispatch._disable_current_modes():
            return found.clone()  # is on the processor from here on


@contextmanager
def reads_of_a_step(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[str]]:
    """The reads of one step, once it has been taken."""
    found: list[str] = []
    take = Loop._take_step

    def taken(self: Loop, bar: Any) -> None:
        if self.step != number:
            return take(self, bar)
        operations = Operations(list(self.parameters.values()))
        with Methods(operations), operations:
            take(self, bar)
        found.extend(operations.reads)

    monkeypatch.setattr(Loop, "_take_step", taken)
    yield found


@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_reads_losses_and_norms_at_once_and_little_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TRAINERS[name](steps=4, log_every=1000, eval_every=1000)
    with reads_of_a_step(monkeypatch, 2) as reads:
        trainer.fit()
    assert len(reads) == (2 if name in TWICE else 1), reads
    assert "population.py" in reads[-1]


def test_every_kind_of_read_is_seen() -> None:
    def counted(function: Callable[[Tensor], object]) -> int:
        x = torch.tensor([1.0, 2.0])
        operations = Operations([x])
        with Methods(operations), operations:
            function(x * 2)
        return len(operations.reads)

    reading: list[Callable[[Tensor], object]] = [
        lambda y: y.tolist(),
        lambda y: y.numpy(),
        lambda y: y.cpu(),
        lambda y: float(y[0]),
        lambda y: bool((y > 0).all()),
        lambda y: y[y > 1],
        lambda y: y.nonzero(),
        lambda y: y.sum().item(),
    ]
    assert [counted(function) for function in reading] == [1] * len(reading)
    assert counted(lambda y: (y.cpu() + 1).tolist()) == 1  # it is on the processor by then
    assert counted(lambda y: y[torch.tensor([0])] + torch.ones(2).tolist()[0]) == 0
