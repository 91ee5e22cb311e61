"""Fisher matrix of models: trace, diagonal by layer, effective rank.

Axes: G models, N samples of each, R gradients of a sample, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core import effective_rank, fisher_diagonal
from metalearn.core.curvature.fisher_problem import FisherProblem
from metalearn.core.curvature.likelihood import FisherKind
from metalearn.core.tree import leaves, tree_map
from metalearn.trainers.diagnostics.fisher_trace import FISHER_KINDS, fisher_traces
from metalearn.trainers.diagnostics.models import map_models
from metalearn.trainers.diagnostics.moments import by_layer
from metalearn.trainers.diagnostics.protocol import ModelDiagnostic, PredictiveModels
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.settings import CurvatureSettings
from metalearn.types import Batch, Params

__all__ = ["Fisher"]

_RANK_ROWS = 512  # gradients of which an effective rank is taken


class Fisher(ModelDiagnostic):
    """Trace, diagonal by layer and effective rank of the Fisher matrix, exact and empirical.

    The rank is of as many samples as have 512 gradients.
    """

    name = "fisher"
    reading = (
        "How strongly predictions move with parameters (trace), and in how many directions "
        "(effective rank): exact over what the model predicts, empirical at the targets. "
        "Alarming: a rank near 1, as all samples ask for one direction; traces that differ "
        "many times, as probabilities are then far from the targets."
    )
    in_training = False
    title = "Fisher matrix"

    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        """Of each model; the diagonal as its mean over models."""
        result = DiagnosticResult()
        for kind in FISHER_KINDS:
            traces = torch.cat([fisher_traces(one, kind) for one in models])
            result.values[f"trace_{kind}"] = traces
            sums = map_models(_diagonal_sums(kind), models, settings.models_at_once)
            layers = by_layer({name: values.mean() for name, values in sums.items()})
            result.layers[f"diagonal_{kind}"] = {k: float(v) for k, v in layers.items()}
            result.values[f"effective_rank_{kind}"] = map_models(
                _rank(kind), models, settings.models_at_once
            )
        return result


def _diagonal_sums(kind: FisherKind) -> Any:
    """Σ over the elements of each parameter of the diagonal of F."""

    def of(models: PredictiveModels, params: Params, extra: Any, batch: Batch) -> Any:
        diagonal = fisher_diagonal(
            models.outputs_fn(extra),
            params,
            batch,
            likelihood=models.fisher_rule(kind),
            chunk_size=8,
        )
        return tree_map(Tensor.sum, diagonal)

    return of


def _rank(kind: FisherKind) -> Any:
    """Effective rank of F over a part of the batch."""

    def of(models: PredictiveModels, params: Params, extra: Any, batch: Batch) -> Tensor:
        rule = models.fisher_rule(kind)
        outputs = models.outputs_fn(extra)
        count = outputs(params, tree_map(lambda x: x[:1], batch[0])).shape[-1]
        size = max(1, _RANK_ROWS // rule.columns(count))
        few = tree_map(lambda x: x[:size], batch)
        problem = FisherProblem.of(outputs, params, few, rule, None)
        return effective_rank(problem.mean(_gram, len(leaves(few)[0])))

    return of


def _gram(grads: Params) -> Tensor:
    """Products of all gradients ``[n, R, ...]``: has the eigenvalues of N·F beside zeros."""
    rows = torch.cat([g.reshape(g.shape[0] * g.shape[1], -1) for g in leaves(grads)], 1)
    return rows @ rows.mT
