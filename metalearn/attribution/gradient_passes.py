"""Passes over the gradients of samples, of all parameters or of chosen ones, chunk by chunk.

Axes: R targets, N examples, n samples of a chunk, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.precision import widened
from metalearn.core.samples.gradients import (
    SampleMethod,
    gradients_taker,
    one_by_one,
    refusing,
)
from metalearn.core.samples.layer_io import Collected
from metalearn.core.samples.norms import collector_of
from metalearn.core.samples.reductions import Reduction, reduce_per_sample
from metalearn.core.samples.sample_gradients import FormedGradients
from metalearn.core.tree import (
    check_floating,
    flatten,
    leaf_names,
    leaves,
    match_names,
    tree_map,
    unflatten,
)
from metalearn.types import Batch, LossFn, Params

__all__ = ["GradientPasses", "check_batches", "chosen_parameters", "detached"]


def chosen_parameters(
    params: Params, parameters: str | Sequence[str] | None
) -> tuple[Params, Callable[[Params], Params]]:
    """The parameters that patterns match, detached, and the whole tree as a function of them.

    Args:
        params: any tree of floating-point tensors.
        parameters: shell-style patterns as of ``frozen``, such as ``"head.*"``; None takes all, as
            the tree that they are; chosen ones are a dict by dotted name.

    Raises:
        SettingError: a pattern that matches no parameter; parameters that are no such tree.
    """
    check_floating(params, "params")
    whole = tree_map(torch.detach, params)
    if parameters is None:
        return whole, lambda part: part
    hits = match_names(params, parameters, "parameters")
    (values, spec), names = flatten(whole), leaf_names(whole)

    def with_part(part: Params) -> Params:
        return unflatten([part.get(name, value) for name, value in zip(names, values)], spec)

    return {n: v for n, v, hit in zip(names, values, hits) if hit}, with_part


@dataclass(frozen=True)
class GradientPasses:
    """The gradients g_i = ∇ℓ_i of one loss at one place, taken so many samples at a time.

    Nothing here is differentiated further: parameters and batches are detached.
    """

    loss_fn: LossFn
    """Of ``params`` alone."""
    params: Params
    """Those whose gradients are taken."""
    chunk_size: ChunkSize
    memory: int | str | None
    method: SampleMethod

    @staticmethod
    def of(
        loss_fn: LossFn,
        params: Params,
        parameters: str | Sequence[str] | None,
        chunk_size: ChunkSize,
        memory: int | str | None,
        method: SampleMethod,
    ) -> GradientPasses:
        """The passes of chosen parameters; the arguments are those of the score functions."""
        part, whole = chosen_parameters(params, parameters)
        if parameters is None:
            return GradientPasses(loss_fn, part, chunk_size, memory, method)

        def loss_of_part(part: Params, batch: Batch) -> Tensor:
            return loss_fn(whole(part), batch)

        return GradientPasses(loss_of_part, part, chunk_size, memory, method)

    def gram(self, targets: Batch, examples: Batch) -> Tensor:
        """⟨g_r, g_i⟩ ``[R, N]``; of products with matrices no gradient is formed if that is more.

        Only a chunk of targets and one of examples is held at once.
        """
        check_batches(targets, examples)
        targets, examples = detached(targets), detached(examples)

        def with_itself(batch: Batch) -> Tensor:
            found = self._collected(batch)
            return found.gram(found)

        with refusing(self.loss_fn, self.params, examples, self.method):
            size = resolve_chunk(with_itself, examples, self.chunk_size, self.memory)
            rows = []
            for some in chunks(targets, size):
                left = self._collected(some)
                right = (self._collected(part) for part in chunks(examples, size))
                rows.append(torch.cat([left.gram(part) for part in right], dim=1))
        return torch.cat(rows)

    def formed(self, batch: Batch) -> Iterator[Params]:
        """Gradients with leaves ``[n, ...]``, in float32 at least, of one chunk after another."""
        batch = detached(batch)
        take = gradients_taker(self.loss_fn, self.params, self.method)
        with refusing(self.loss_fn, self.params, batch, self.method):
            size = resolve_chunk(take, batch, self.chunk_size, self.memory)
            for part in chunks(batch, size):
                yield tree_map(widened, take(part))

    def whole(self, batch: Batch) -> Params:
        """All gradients of a batch, leaves ``[N, ...]``, in float32 at least."""
        return tree_map(lambda *pieces: torch.cat(pieces), *self.formed(batch))

    def reduced(self, batch: Batch, reduction: Reduction) -> Any:
        """What a reduction makes of all gradients of a batch."""
        found = reduce_per_sample(
            self.loss_fn, self.params, detached(batch), {"it": reduction},
            chunk_size=self.chunk_size, memory=self.memory, method=self.method,
        )  # fmt: skip
        return found["it"]

    def products(self, vectors: Params, batch: Batch) -> Tensor:
        """⟨v_r, g_i⟩ ``[R, N]`` for R vectors, a tree with leaves ``[R, ...]``."""
        return torch.cat([_products(vectors, grads) for grads in self.formed(batch)], dim=1)

    def _collected(self, batch: Batch) -> Collected:
        if self.method != "loop":
            return collector_of(self.loss_fn, self.params, self.method)(batch)
        found = list(one_by_one(self.loss_fn, self.params, batch))
        columns = zip(*(leaves(grads) for grads, _ in found))
        parts: list[Any] = [[FormedGradients(torch.stack(column))] for column in columns]
        losses = torch.stack([loss for _, loss in found])
        return Collected(losses, parts, [0] * len(parts), [True] * len(parts), leaves(self.params))


def check_batches(targets: Batch, examples: Batch) -> tuple[int, int]:
    """R and N; refuses by name what is no batch."""
    return sample_count(targets, "targets"), sample_count(examples, "examples")


def detached(batch: Batch) -> Batch:
    """A batch of which nothing is differentiated."""
    return tree_map(torch.detach, batch)


def _products(vectors: Params, grads: Params) -> Tensor:
    total: Any = 0.0
    for v, g in zip(leaves(vectors), leaves(grads)):
        size = v[0].numel()
        total = total + widened(v).reshape(len(v), size) @ g.reshape(len(g), size).mT
    found: Tensor = total
    return found
