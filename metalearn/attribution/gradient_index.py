"""An index of projected training gradients in a folder: built once, queried many times.

Axes: R targets, N examples, k numbers of a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metalearn.attribution.gradient_passes import GradientPasses
from metalearn.attribution.index_files import IndexFiles, IndexHeader
from metalearn.attribution.projections import ProjectionKind, gradient_projections
from metalearn.attribution.similarity import of_length_one
from metalearn.core.checks import check_number
from metalearn.core.chunking import ChunkSize, chunks, sample_count
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.samples.reductions import Reduction
from metalearn.core.tree import check_floating, leaf_names, leaves, tree_map
from metalearn.data.checksums import tensors_checksum
from metalearn.errors import DataError, NonFiniteError, SettingError, check_whole
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["GradientIndex", "IndexMetric", "build_gradient_index", "load_gradient_index"]

IndexMetric = Literal["dot", "cosine", "influence"]


@dataclass(frozen=True)
class GradientIndex:
    """Projected gradients of N examples, and what projects those of targets the same way."""

    rows: Tensor
    """``[N, k]``, in the order of the examples."""
    passes: GradientPasses
    reduction: Reduction

    @checked
    def query(
        self, targets: Batch, *, metric: IndexMetric = "dot", damping: float | None = None
    ) -> Tensor:
        """Scores ``[R, N]`` of the examples, from projections s ``[k]`` of the gradients.

        ``"dot"``: ⟨s_r, s_i⟩, which in the mean over projections is ⟨∇ℓ_r, ∇ℓ_i⟩; ``"cosine"``,
        which only ranks; ``"influence"``: (1/N)·s_rᵀ·((1/N)·Σ s·sᵀ + λI)⁻¹·s_i, with the empirical
        Fisher matrix of the projections for the curvature, in units of the loss. Positive: a
        helpful example.

        Args:
            targets: a batch of R samples, as the examples were.
            metric: one of the three.
            damping: λ above 0, for ``"influence"``.

        Raises:
            SettingError: an unknown metric, no damping for ``"influence"`` or one for another; what
                `metalearn.core.per_sample_gradients` refuses.
        """
        if metric not in get_args(IndexMetric):
            raise SettingError("metric", metric, f"one of {', '.join(get_args(IndexMetric))}")
        if metric != "influence" and damping is not None:
            raise SettingError("damping", damping, "it goes with metric='influence' alone")
        sample_count(targets, "targets")
        right = self.rows
        if metric == "influence":
            check_number("damping", damping, above=0, accepted="a number above 0 is needed")
            right = self._preconditioned(float(damping or 0))
        left: Tensor = self.passes.reduced(targets, self.reduction)
        if metric == "cosine":
            left, right = of_length_one(left), of_length_one(right)
        return left @ right.mT

    def _preconditioned(self, damping: float) -> Tensor:
        """(1/N) · ((1/N)·Σ s·sᵀ + λI)⁻¹·s_i of all examples, ``[N, k]``."""
        rows, count = self.rows, len(self.rows)
        eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
        matrix = rows.mT @ rows / count + damping * eye
        found: Tensor = torch.linalg.solve(matrix, rows.mT).mT / count
        return found


@checked
def build_gradient_index(
    folder: Path,
    loss_fn: LossFn,
    params: Params,
    examples: Batch,
    *,
    size: int,
    seed: int,
    projection: ProjectionKind = "signs",
    parameters: str | Sequence[str] | None = None,
    rows_per_file: int = 4096,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> GradientIndex:
    """Project the gradients of all examples, ``[N, k]``, and keep them in a folder.

    What was broken off goes on where it stopped: files that are whole are kept, if they are of the
    same parameters, examples and settings.

    Args:
        folder: is made if missing.
        loss_fn: as for `tracin_scores`, as is ``examples``; it is not kept, so that whoever loads
            the index answers for giving the same one.
        params: θ.
        examples: see there.
        size: k, of the projections.
        seed: of the projection.
        projection: ``"signs"``, or ``"sketch"``, which takes less time.
        parameters: as for `tracin_scores`, as are ``chunk_size``, ``memory`` and ``method``.
        rows_per_file: examples of a file, what is lost at most by breaking off.
        chunk_size: see there.
        memory: see there.
        method: see there.

    Raises:
        DataError: the folder has another index.
        NonFiniteError: a gradient that is not finite.
        SettingError: numbers out of range; what `metalearn.core.per_sample_gradients` refuses.
    """
    count = sample_count(examples, "examples")
    check_whole("rows_per_file", rows_per_file, 1)
    own = _copied(params)
    passes = GradientPasses.of(loss_fn, own, parameters, chunk_size, memory, method)
    reduction = gradient_projections(projection, size, seed)
    patterns = [parameters] if isinstance(parameters, str) else parameters
    header = IndexHeader(
        count, size, seed, projection, None if patterns is None else list(patterns),
        _checksum(own), _checksum(examples), rows_per_file,
    )  # fmt: skip
    files = IndexFiles(Path(folder), header)
    files.claim()
    _fill(files, passes, reduction, examples)
    return _opened(files, passes, reduction)


@checked
def load_gradient_index(
    folder: Path,
    loss_fn: LossFn,
    params: Params,
    *,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> GradientIndex:
    """An index that `build_gradient_index` made, for queries of the same parameters.

    Args:
        folder: of the index.
        loss_fn: that it was built with.
        params: that it was built with; checked by their checksum.
        chunk_size: of queries, as for `tracin_scores`, as are ``memory`` and ``method``.
        memory: see there.
        method: see there.

    Raises:
        DataError: no index, one that is not complete or is damaged, or of other parameters.
    """
    header = IndexFiles.header_of(Path(folder))
    own = _copied(params)
    if header.params_sha256 != _checksum(own):
        raise DataError(f"{folder}: this index is of other parameters than those given")
    passes = GradientPasses.of(loss_fn, own, header.parameters, chunk_size, memory, method)
    reduction = gradient_projections(header.projection, header.size, header.seed)
    return _opened(IndexFiles(Path(folder), header), passes, reduction)


def _fill(files: IndexFiles, passes: GradientPasses, reduction: Reduction, examples: Batch) -> None:
    """Write the files that are not there."""
    first = 0
    for number, some in enumerate(chunks(examples, files.header.rows_per_file)):
        if files.rows(number) is None:
            rows = passes.reduced(some, reduction)
            finite = rows.isfinite().all(1)
            if not bool(finite.all()):
                wrong = first + int(finite.int().argmin())
                raise NonFiniteError(f"the gradient of example {wrong} is infinite or NaN")
            files.write(number, rows)
        first += sample_count(some)


def _opened(files: IndexFiles, passes: GradientPasses, reduction: Reduction) -> GradientIndex:
    rows = files.all_rows()
    return GradientIndex(rows.to(leaves(passes.params)[0].device), passes, reduction)


def _copied(params: Params) -> Params:
    """Parameters of the index's own: a training may change the given ones in place."""
    check_floating(params, "params")
    return tree_map(lambda p: p.detach().clone(), params)


def _checksum(tree: Any) -> str:
    return tensors_checksum(dict(zip(leaf_names(tree), leaves(tree))))
