"""Trace of the Fisher matrix of what models predict.

Axes: G models, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core import fisher_trace
from metalearn.core.curvature.likelihood import FisherKind
from metalearn.core.tree import leaves
from metalearn.trainers.diagnostics.protocol import ModelDiagnostic, PredictiveModels
from metalearn.trainers.diagnostics.result import DiagnosticResult
from metalearn.trainers.diagnostics.sample_gradients import within_budget
from metalearn.trainers.diagnostics.settings import CurvatureSettings

__all__ = ["FISHER_KINDS", "FisherTrace", "fisher_traces"]

FISHER_KINDS: tuple[FisherKind, ...] = ("exact", "empirical")


class FisherTrace(ModelDiagnostic):
    """Tr F, exact (over the model's own predictive distribution) and empirical (at the targets).

    In a training the mean over members, or over tasks at parameters adapted by the inner steps, of
    the mean over the samples at hand; of a meta-learner over query sets.
    """

    name = "fisher_trace"
    reading = (
        "How strongly predictions move with parameters: exact over what the model predicts, "
        "empirical at the targets. Alarming: one that is many times the other, as "
        "probabilities are then far from the targets."
    )

    def result(
        self, models: Sequence[PredictiveModels], settings: CurvatureSettings
    ) -> DiagnosticResult:
        """Of each model."""
        return DiagnosticResult(
            {kind: torch.cat([fisher_traces(one, kind) for one in models]) for kind in FISHER_KINDS}
        )


def fisher_traces(model: PredictiveModels, kind: FisherKind) -> Tensor:
    """Tr F of each of G models, ``[G]``."""
    columns = 1
    if kind == "exact":
        inputs, _ = model.batch
        one = torch.vmap(lambda p, e, x: model.outputs_fn(e)(p, x))
        with torch.no_grad():
            columns = one(model.params, model.extra, inputs[:, :1]).shape[-1]

    def of(params: Any, extra: Any, batch: Any, *, size: int) -> Tensor:
        return fisher_trace(
            model.outputs_fn(extra),
            params,
            batch,
            likelihood=model.fisher_rule(kind),
            chunk_size=size,
        )

    count = leaves(model.batch)[0].shape[1]
    block, size = within_budget(model.params, len(leaves(model.params)[0]), count, columns)
    found = torch.vmap(partial(of, size=size), chunk_size=block)(
        model.params, model.extra, model.batch
    )
    return found.detach().cpu().double()
