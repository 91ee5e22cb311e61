"""Gradients whose values nobody reads, only their graph: they are not computed.

The product of a Hessian with a vector differentiates a gradient; the gradient's own value has no
part in it where the gradient is that of a leaf, and what is done with it is linear. So layers leave
out the matrix product that would give it, about a third of what a gradient costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

__all__ = ["Unread", "leaf_unread", "recording_unread", "zeros_in_place"]

_REARRANGING = frozenset(
    f"{name}Backward{number}"
    for name in ("Permute", "View", "ReshapeAlias", "UnsafeView", "Clone", "Alias", "Transpose")
    for number in (0, 1)
)
"""Operations that pass a gradient on as it is, in whatever order."""


class Unread:
    """Whether gradients of leaves are being taken that nobody reads."""

    def __init__(self) -> None:
        self.now = False

    @contextmanager
    def taking(self) -> Iterator[None]:
        """While the gradient of what was recorded is taken, and no longer."""
        self.now = True
        try:
            yield
        finally:
            self.now = False


_recording: ContextVar[Unread | None] = ContextVar("gradients that are not read", default=None)


@contextmanager
def recording_unread() -> Iterator[Unread]:
    """Of what is recorded meanwhile, gradients of leaves are not read; see `Unread.taking`."""
    unread = Unread()
    token = _recording.set(unread)
    try:
        yield unread
    finally:
        _recording.reset(token)


def leaf_unread(tensor: Tensor) -> Unread | None:
    """What is being recorded, if ``tensor`` is a leaf or a leaf rearranged; else None.

    Of anything else the gradient goes on through derivatives that may depend on its value.
    """
    unread = _recording.get()
    if unread is None or not tensor.requires_grad:
        return None
    node: Any = tensor.grad_fn
    while node is not None and node.name() in _REARRANGING:
        node = node.next_functions[0][0]
    is_leaf = node is None or node.name() == "torch::autograd::AccumulateGrad"
    return unread if is_leaf else None


def zeros_in_place(like: Tensor) -> Tensor:
    """What stands for a gradient that nobody reads: zeros of its shape, in the memory of one."""
    return like.new_zeros(()).expand(like.shape)
