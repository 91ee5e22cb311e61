"""Trace of the Fisher matrix of what a trainer's models predict.

Axes: G models, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metalearn.core import fisher_trace
from metalearn.core.curvature.likelihood import FisherKind
from metalearn.core.tree import leaves
from metalearn.tracking import Tracker
from metalearn.trainers.diagnostics.protocol import Diagnostic, Predictive, Watched
from metalearn.trainers.diagnostics.sources import affordable

__all__ = ["FisherTrace", "fisher_traces"]

_KINDS: tuple[FisherKind, ...] = ("exact", "empirical")


class FisherTrace(Diagnostic):
    """Tr F, exact (over the model's own predictive distribution) and empirical (at the targets).

    The mean over members, or over tasks at parameters adapted by the inner steps, of the mean over
    the samples at hand; of a meta-learner over query sets.
    """

    name = "fisher_trace"
    kinds = ("predictive",)

    def conclude(
        self, step: int, watched: Watched, seen: Mapping[str, Any], tracker: Tracker
    ) -> Mapping[str, float]:
        """Mean and extremes over models."""
        models = list(watched.watched_models(step))
        numbers: dict[str, float] = {}
        for kind in _KINDS:
            traces = torch.cat([fisher_traces(model, kind) for model in models])
            numbers[f"fisher_trace/{kind}"] = float(traces.mean())
            if len(traces) > 1:
                numbers[f"fisher_trace/{kind}_low"] = float(traces.min())
                numbers[f"fisher_trace/{kind}_high"] = float(traces.max())
        return numbers


def fisher_traces(model: Predictive, kind: FisherKind) -> Tensor:
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
            likelihood=model.likelihood,
            kind=kind,
            variance=model.variance,
            chunk_size=size,
        )

    count = leaves(model.batch)[0].shape[1]
    block, size = affordable(model.params, len(leaves(model.params)[0]), count, columns)
    found = torch.vmap(partial(of, size=size), chunk_size=block)(
        model.params, model.extra, model.batch
    )
    return found.detach().double().cpu()
