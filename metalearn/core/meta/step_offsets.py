"""Parameters that have a learnt value of their own after each inner step, in place of adaptation.

Axes: K inner steps, R rows that are stacked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalearn.core.meta.inner_optimizers import InnerOptimizer
from metalearn.core.tree import leaves

__all__ = ["with_step_offsets"]

Leaf = TypeVar("Leaf")


def with_step_offsets(optimizer: InnerOptimizer, offsets: Mapping[str, Tensor]) -> InnerOptimizer:
    """An inner optimiser under which named parameters are θ_0 + d_k after k steps, with d_0 = 0.

    No inner gradient moves them. Their step k → k + 1 adds d_{k+1} − d_k, so that no engine has to
    know the number of a step; those after the K-th leave them as they are. ``optimizer`` moves the
    other parameters. What the result learns is a pair: what ``optimizer`` learns, and d.

    Args:
        optimizer: of the others.
        offsets: by the name of a parameter that adapts, d_1 … d_K, ``[K, ...]``.
    """
    return _made(_Parts(optimizer, dict(offsets)))


@dataclass(frozen=True)
class _Parts:
    """Both rules, and which leaves are whose."""

    optimizer: InnerOptimizer
    offsets: dict[str, Tensor]
    names: tuple[str, ...] = ()
    """Of the leaves that adapt, once they are known."""
    stacked: bool = False
    """Whether offsets are ``[R, K, ...]``."""

    def others(self, values: Sequence[Leaf]) -> list[Leaf]:
        """Those of the leaves that the optimiser moves."""
        return [v for name, v in zip(self.names, values) if name not in self.offsets]

    def merged(self, moved: Sequence[Tensor], count: int, values: Sequence[Tensor]) -> list[Tensor]:
        """All leaves, those of the optimiser from ``moved``, others by their step from ``values``.

        ``count`` steps were before it.
        """
        supply = iter(moved)
        return [
            value + self.difference(name, count) if name in self.offsets else next(supply)
            for name, value in zip(self.names, values)
        ]

    def difference(self, name: str, count: int) -> Tensor:
        """d_{k+1} − d_k of a parameter after k steps, ``[...]`` or ``[R, ...]``."""
        offset, axis = self.offsets[name], int(self.stacked)
        if count >= offset.shape[axis]:
            return torch.zeros_like(offset.select(axis, 0))
        now = offset.select(axis, count)
        return now - offset.select(axis, count - 1) if count else now

    def with_learnt(self, learnt: Any, *, stack: bool) -> _Parts:
        """The same with other values of what is learnt; ``stack``, with one for each row."""
        own, offsets = learnt
        optimizer = self.optimizer
        if leaves(own):
            change = optimizer.stack if stack and optimizer.stack else optimizer.with_learnt
            optimizer = change(own)
        stacked = stack or self.stacked
        return replace(self, optimizer=optimizer, offsets=dict(offsets), stacked=stacked)

    def matched(self, names: Sequence[str], values: Sequence[Tensor]) -> _Parts:
        """The same for leaves of these names."""
        named, optimizer = replace(self, names=tuple(names)), self.optimizer
        if optimizer.match is not None:
            optimizer = optimizer.match(named.others(list(names)), named.others(values))
        return replace(named, optimizer=optimizer)

    @property
    def unmoved(self) -> frozenset[int]:
        """Positions of leaves that no gradient moves."""
        places = self.others(range(len(self.names)))
        own = frozenset(range(len(self.names))).difference(places)
        return own | {places[place] for place in self.optimizer.unmoved}


def _made(parts: _Parts) -> InnerOptimizer:
    optimizer = parts.optimizer

    def init(params: Sequence[Tensor]) -> Any:
        return 0, optimizer.init(parts.others(params))

    def update(grads: Sequence[Tensor], state: Any, params: Sequence[Tensor]) -> tuple[Any, Any]:
        count, memory = state
        updates, memory = optimizer.update(parts.others(grads), memory, parts.others(params))
        still = [torch.zeros_like(value) for value in params]
        return parts.merged(updates, count, still), (count + 1, memory)

    def fused(grads: Sequence[Tensor], state: Any, params: Sequence[Tensor]) -> tuple[Any, Any]:
        count, memory = state
        moved, memory = optimizer.step(parts.others(grads), memory, parts.others(params))
        return parts.merged(moved, count, params), (count + 1, memory)

    return InnerOptimizer(
        init,
        update,
        (optimizer.learnt, parts.offsets),
        lambda learnt: _made(parts.with_learnt(learnt, stack=False)),
        elementwise=optimizer.elementwise,
        weight_decay=optimizer.weight_decay,
        fused=fused,
        stack=lambda learnt: _made(parts.with_learnt(learnt, stack=True)),
        match=lambda names, values: _made(parts.matched(names, values)),
        schedule_lengths=optimizer.schedule_lengths,
        clip_norm=optimizer.clip_norm,
        support_batch=optimizer.support_batch,
        unmoved=parts.unmoved,
    )
