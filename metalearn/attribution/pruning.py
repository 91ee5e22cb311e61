"""How much a network still has to learn from an example: scores by which training sets are pruned.

Axes: M models, N examples, C classes.
Source: Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early
in Training", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.attribution.gradient_passes import GradientPasses, detached
from metalearn.core.checks import call_given, check_pair
from metalearn.core.chunking import ChunkSize, chunks, resolve_chunk, sample_count
from metalearn.core.curvature.fisher_problem import OutputsFn
from metalearn.core.precision import widened
from metalearn.core.samples.gradients import SampleMethod
from metalearn.core.samples.norms import per_sample_norms
from metalearn.core.targets import check_labels
from metalearn.core.tree import check_floating
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.types import Batch, LossFn, Params

__all__ = ["check_logits", "check_models", "el2n_scores", "grand_scores"]


@checked
def grand_scores(
    loss_fn: LossFn,
    models: Sequence[Params],
    examples: Batch,
    *,
    parameters: str | Sequence[str] | None = None,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
    method: SampleMethod = "layers",
) -> Tensor:
    """GraNd ``[N]``: the norm of an example's gradient, (1/M)·Σ_m ‖∇ℓ_i(θ_m)‖.

    It bounds by how much the example moves any loss in a step. Large: hard, important or wrongly
    labelled examples; what is small may be pruned.

    Args:
        loss_fn: as for `tracin_scores`.
        models: M trees of parameters, of several seeds early in their training.
        examples: a batch of N samples.
        parameters: as for `tracin_scores`, as are ``chunk_size``, ``memory`` and ``method``.
        chunk_size: see there.
        memory: see there.
        method: see there.

    Raises:
        SettingError: no model; what `metalearn.core.per_sample_norms` refuses.
    """
    check_models(models)
    sample_count(examples, "examples")

    def norms(params: Params) -> Tensor:
        passes = GradientPasses.of(loss_fn, params, parameters, chunk_size, memory, method)
        found = per_sample_norms(
            passes.loss_fn, passes.params, detached(examples),
            chunk_size=chunk_size, memory=memory, method=method,
        )  # fmt: skip
        assert isinstance(found, Tensor)
        return found

    return reduce(torch.add, map(norms, models)) / len(models)


@checked
def el2n_scores(
    outputs_fn: OutputsFn,
    models: Sequence[Params],
    examples: Batch,
    *,
    chunk_size: ChunkSize = "auto",
    memory: int | str | None = None,
) -> Tensor:
    """EL2N ``[N]``: the error of the probabilities, (1/M)·Σ_m ‖softmax f(x_i; θ_m) − onehot(y_i)‖.

    Between 0 and √2. It is the norm of the cross-entropy's gradient with respect to the logits.

    Args:
        outputs_fn: logits ``[N, C]`` of parameters and inputs.
        models: M trees of parameters, of several seeds early in their training.
        examples: ``(inputs, labels)``, labels in 0..C−1.
        chunk_size: samples of one pass, as for `tracin_scores`, as is ``memory``.
        memory: see there.

    Raises:
        SettingError: no model, outputs that are no logits, labels out of range.
    """
    check_models(models)
    sample_count(examples, "examples")

    def errors(params: Params) -> Tensor:
        check_floating(params, "params")

        def of_batch(batch: Batch) -> Tensor:
            inputs, labels = check_pair(batch, "examples", "inputs, labels")
            probabilities = check_logits(
                call_given(outputs_fn, "outputs_fn", params, inputs), labels
            ).softmax(-1)
            onehot = F.one_hot(labels.long(), probabilities.shape[1])
            error: Tensor = torch.linalg.vector_norm(probabilities - onehot, dim=-1)
            return error

        size = resolve_chunk(of_batch, examples, chunk_size, memory)
        return torch.cat([of_batch(part) for part in chunks(examples, size)])

    with torch.no_grad():
        return reduce(torch.add, map(errors, models)) / len(models)


def check_models(models: Sequence[Params]) -> None:
    """Refuse no models."""
    if not len(models):
        raise SettingError("models", 0, "at least one is needed")


def check_logits(outputs: object, labels: Tensor) -> Tensor:
    """Logits ``[N, C]`` in float32 at least, refused where they do not fit the labels ``[N]``."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.dim() != 2:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise SettingError("outputs_fn", got, "logits [N, C] of a floating-point type are needed")
    if not isinstance(labels, Tensor) or tuple(labels.shape) != tuple(outputs.shape[:1]):
        got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise SettingError("labels", got, f"the shape {tuple(outputs.shape[:1])} is needed")
    check_labels(labels, outputs.shape[1], "labels", padded=False)
    return widened(outputs)
