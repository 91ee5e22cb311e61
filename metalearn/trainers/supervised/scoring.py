"""Tests of finished trainings on labelled data, and the trial of a model before one.

Axes: M members, N samples of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.core.vectorization import VectorizationError
from metalearn.data import ClassificationData
from metalearn.errors import NonFiniteError, SettingError
from metalearn.evaluation import fit_temperature
from metalearn.trainers.members.not_finite import named
from metalearn.trainers.supervised.predictions import Predict, logits_of, report_of
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.types import Split

__all__ = ["check_members", "check_outputs", "score_split"]


def score_split(
    predict: Predict, data: ClassificationData, split: Split, *, members: int, device: torch.device
) -> EnsembleTest:
    """Scores of M members on a split, and the temperature of their mean on the validation split.

    Raises:
        NonFiniteError: predictions are NaN.
    """
    logits, targets = logits_of(predict, data, "validation", device=device)
    check_members(logits, "validation")
    temperature = fit_temperature(logits, targets, pooling="pool_then_scale")
    report = report_of(predict, data, split, members=members, device=device)
    check_members(report.members.accuracy, split)
    return EnsembleTest(split, report, temperature, {})


def check_outputs(
    name: str,
    predict: Predict,
    data: ClassificationData,
    wanted: Sequence[int],
    *,
    device: torch.device,
) -> None:
    """Run two samples through a model before any training.

    Args:
        name: of the model, for messages.
        predict: what gives its outputs.
        data: what it is to be trained on.
        wanted: shape of the outputs.
        device: where it is.

    Raises:
        SettingError: a model that cannot take the data, or has outputs of another shape.
    """
    x, _ = data.take(data.splits["train"][:2], device=device)
    try:
        got = list(predict(x).shape)
    except VectorizationError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        accepted = f"inputs {list(data.input_shape)} are what it gets ({reason})"
        raise SettingError("model", name, accepted) from error
    if got != list(wanted):
        accepted = f"outputs {list(wanted)} are needed, not {got}"
        raise SettingError("model", name, accepted)


def check_members(logits: Tensor, split: str) -> None:
    """Refuse predictions that are NaN: so is the mean of the members then.

    Args:
        logits: ``[M, N, C]``, or scores of them, ``[M]``.
        split: for the message.

    Raises:
        NonFiniteError: names the members.
    """
    lost = logits.isnan().unsqueeze(-1).flatten(1).any(1).nonzero().flatten().tolist()
    if lost:
        who = f" of {named(lost)}" if len(logits) > 1 else ""
        raise NonFiniteError(f"{split}: the predictions{who} are NaN, so there is nothing to score")
