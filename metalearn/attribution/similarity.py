"""How alike targets and examples are to a network: by their gradients, or by its features.

Axes: R targets, N examples, D features.
Sources: Charpiat et al., "Input Similarity from the Neural Network Perspective", NeurIPS 2019
(gradients); Hanawa et al., "Evaluation of Similarity-Based Explanations", ICLR 2021 (a comparison).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.attribution.gradient_passes import GradientPasses, check_batches, detached
from metalearn.core.checks import call_given
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.precision import widened
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.samples.norms import per_sample_norms
from metalearn.core.tree import check_floating
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = [
    "GradientMetric",
    "RepresentationMetric",
    "check_metric",
    "gradient_similarity",
    "of_length_one",
    "representation_similarity",
]

GradientMetric = Literal["cosine", "dot"]
RepresentationMetric = Literal["cosine", "dot", "euclidean"]


@checked
def gradient_similarity(
    loss_fn: LossFn,
    params: Params,
    targets: Batch,
    examples: Batch,
    *,
    metric: GradientMetric = "cosine",
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """Scores ``[R, N]``: ⟨g_r, g_i⟩ of the gradients of the losses, or their cosine.

    Positive: a step on the example lowers the loss of the target. The cosine is between −1 and 1
    and leaves out how large the gradients are, so that examples of a large loss do not come first
    everywhere; it only ranks. It is 0 where a gradient is, or is so small that squares of such
    numbers are (1e-19 in float32).

    Args:
        loss_fn: as for `tracin_scores`, as are ``targets`` and ``examples``.
        params: θ.
        targets: see there.
        examples: see there.
        metric: ``"cosine"`` or ``"dot"``.
        parameters: as for `tracin_scores`, as are ``chunk_size``, ``memory`` and ``method``.
        chunk_size: see there.
        memory: see there.
        method: see there.

    Raises:
        SettingError: an unknown metric; what `metalearn.core.per_sample_gradients` refuses.
    """
    check_metric(metric, get_args(GradientMetric))
    check_batches(targets, examples)
    passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
    gram = passes.gram(targets, examples)
    if metric == "dot":
        return gram

    def norms(batch: Batch) -> Tensor:
        found = per_sample_norms(
            passes.loss_fn, passes.params, detached(batch),
            chunk_size=chunk_size, memory=memory, method=method,
        )  # fmt: skip
        assert isinstance(found, Tensor)
        return torch.where(found < torch.finfo(found.dtype).tiny ** 0.5, torch.inf, found)

    return gram / norms(targets)[:, None] / norms(examples)


@checked
def representation_similarity(
    features_fn: Callable[[Params, Any], Tensor],
    params: Params,
    targets: Batch,
    examples: Batch,
    *,
    metric: RepresentationMetric = "cosine",
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
) -> Tensor:
    """Scores ``[R, N]`` of how alike the features φ of targets and examples are.

    ``"cosine"``: ⟨φ_r, φ_i⟩ / (‖φ_r‖·‖φ_i‖), 0 where a feature is; ``"dot"``: ⟨φ_r, φ_i⟩;
    ``"euclidean"``: −‖φ_r − φ_i‖. It looks at no label and no loss: larger means more alike, which
    ranks the examples that speak of a target, and does not tell a helpful one from a harmful one.

    Args:
        features_fn: ``features_fn(params, inputs)``, features ``[N, ...]``, flattened to
            ``[N, D]``; usually those before the last layer.
        params: θ.
        targets: the inputs of R samples.
        examples: the inputs of N samples.
        metric: one of the three.
        chunk_size: as for `tracin_scores`, as is ``memory``.
        memory: see there.

    Raises:
        SettingError: an unknown metric, features without a sample axis.
    """
    check_metric(metric, get_args(RepresentationMetric))
    check_batches(targets, examples)
    check_floating(params, "params")

    features = partial(_features, features_fn, params)
    with torch.no_grad():
        size = resolve_chunk(features, examples, chunk_size, memory)
        left, right = (
            torch.cat([features(part) for part in chunks(batch, size)])
            for batch in (targets, examples)
        )
        if left.shape[1] != right.shape[1]:
            needed = f"{right.shape[1]} features of each are needed, as of the examples"
            raise SettingError("targets", f"{left.shape[1]} features", needed)
        if metric == "euclidean":
            return -torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        if metric == "cosine":
            left, right = (of_length_one(x) for x in (left, right))
        return left @ right.mT


def _features(features_fn: Callable[[Params, Any], Tensor], params: Params, inputs: Any) -> Tensor:
    """``[N, D]``, in float32 at least; refused where they are none."""
    count = sample_count(inputs)
    found = call_given(features_fn, "features_fn", params, inputs)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 1:
        shown = type(found).__name__
        raise SettingError("features_fn", shown, "a floating-point tensor [N, ...] is needed")
    if len(found) != count:
        shape = tuple(found.shape)
        raise SettingError("features_fn", shape, f"features of {count} samples are needed")
    return widened(found.reshape(count, found[0].numel()))


def check_metric(metric: str, known: Sequence[str]) -> None:
    """Refuse an unknown one."""
    if metric not in known:
        raise SettingError("metric", metric, f"one of {', '.join(known)} is needed")


def of_length_one(rows: Tensor) -> Tensor:
    """Rows divided by their norms, however small these are; those of zeros stay."""
    largest = rows.abs().amax(1, keepdim=True)
    return F.normalize(rows / torch.where(largest > 0, largest, 1.0), dim=1)
