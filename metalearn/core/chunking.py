"""How many samples are taken at once.

Axes: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch

from metalearn.core.memory import free_memory, parse_bytes, peak_memory, sharers
from metalearn.core.tree import check_tensors, flatten, leaf_names, tree_map
from metalearn.errors import SettingError, check_whole
from metalearn.types import Batch

__all__ = ["ChunkSize", "chunks", "resolve_chunk", "sample_count"]

ChunkSize = int | Literal["auto"] | None


def sample_count(batch: Batch, setting: str = "batch") -> int:
    """N, the length of the leading axis of all leaves.

    Raises:
        SettingError: no leaves, leaves that are not tensors, different lengths; ``setting`` is
            what the sentence calls the batch.
    """
    values, _ = flatten(batch)
    check_tensors(batch, setting)
    counts: dict[int, str] = {}
    for i, value in enumerate(values):
        if value.dim() == 0:
            got, needed = "a scalar", "a tensor with a leading sample axis is needed"
            name = leaf_names(batch)[i]
            raise SettingError(f"{setting}[{name}]" if name else setting, got, needed)
        counts.setdefault(value.shape[0], leaf_names(batch)[i])
    if len(counts) != 1 or 0 in counts:
        found = {name: count for count, name in counts.items()}
        raise SettingError(setting, found, "the same number of samples, at least 1, is needed")
    return next(iter(counts))


def chunks(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch in pieces of ``size`` samples, the last one shorter; None gives it whole."""
    count = sample_count(batch)
    step = count if size is None else size
    for start in range(0, count, step):
        yield tree_map(lambda x, start=start: x[start : start + step], batch)


def resolve_chunk(
    function: Callable[[Batch], Any],
    batch: Batch,
    chunk_size: ChunkSize,
    memory: int | str | None = None,
    *,
    of: str = "sample",
) -> int | None:
    """The chunk size as a number, or None for all samples at once.

    ``"auto"`` runs ``function`` on one and on two samples to see how its memory grows; it is not
    for use inside vmap. ``of`` is what an error calls a sample.

    Raises:
        SettingError: a chunk size that is no whole number above 0, a budget without ``"auto"``, a
            budget with no room for one sample.
    """
    count = sample_count(batch)
    if memory is not None and chunk_size != "auto":
        raise SettingError("memory", memory, 'it goes with chunk_size="auto" alone')
    if chunk_size is None:
        return None
    if chunk_size != "auto":
        check_whole("chunk_size", chunk_size, 1)
        return min(chunk_size, count)
    device = flatten(batch)[0][0].device
    own = (free_memory(device) or 0) // (2 * sharers(device))
    budget = parse_bytes(memory) if memory is not None else own
    if memory is None and budget == 0:
        return None  # nothing is known
    # copies, so that what is a view of them does not count as the whole batch
    few = [tree_map(torch.clone, next(chunks(batch, n))) for n in (1, min(2, count))]
    function(few[-1])  # at a first call things are tried beside, which they are not later
    one, two = (peak_memory(partial(function, samples), device) for samples in few)
    if one > budget:
        raise SettingError("memory", memory, f"one {of} takes {one} bytes")
    return min(count, 1 + (budget - one) // max(two - one, 1)) if count > 1 else 1
