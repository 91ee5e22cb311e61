"""Tests of finished trainings on labelled data, and the trial of a model before one.

Axes: M members, N samples of a split, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metalearn.core.vectorization import VectorizationError
from metalearn.data.regression import SupervisedData
from metalearn.errors import NonFiniteError, SettingError
from metalearn.evaluation import RegressionReport, fit_temperature
from metalearn.models import Ensemble
from metalearn.trainers.members.not_finite import named
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.metrics import Metrics, measured
from metalearn.trainers.supervised.predictions import Predict, logits_of, report_of
from metalearn.trainers.supervised.regression_reports import RegressionTest
from metalearn.trainers.supervised.reports import EnsembleTest
from metalearn.types import Split

__all__ = ["check_members", "check_outputs", "score_split"]


def score_split(
    predict: Predict,
    data: SupervisedData,
    split: Split,
    *,
    members: int,
    device: torch.device,
    metrics: Metrics | None = None,
    validated: bool = True,
) -> EnsembleTest | RegressionTest:
    """Scores of M members on a split, further metrics, and of classes the temperature.

    The temperature is that of the mean prediction on the validation split, which is not read where
    nothing is ``validated``.

    Raises:
        NonFiniteError: predictions are NaN.
    """
    further: dict[str, float] = {}
    if metrics:
        outputs, targets = logits_of(predict, data, split, device=device)
        check_members(outputs, split)
        further = measured(metrics, outputs, targets)
    temperature = None
    if data.kind == "classification" and validated:
        logits, labels = logits_of(predict, data, "validation", device=device)
        check_members(logits, "validation")
        temperature = fit_temperature(logits, labels, pooling="pool_then_scale")
    found = report_of(predict, data, split, members=members, device=device)
    check_members(found.members.nll, split)
    if isinstance(found, RegressionReport):
        return RegressionTest(split, found, further)
    return EnsembleTest(split, found, temperature, {}, further)


def check_outputs(
    name: str,
    predict: Predict,
    data: SupervisedData,
    loss: SupervisedLoss,
    *,
    members: int | None,
    device: torch.device,
    weighted: bool = False,
) -> None:
    """Run two samples through a model and its loss before any training.

    Args:
        name: of the model, for messages.
        predict: what gives its outputs, ``[M, N, C]``.
        data: what it is to be trained on.
        loss: says how many outputs it takes; one of the user's is tried.
        members: M; None of a single module, whose outputs are called ``[N, C]``.
        device: where it is.
        weighted: whether samples are, so that a loss has to give each one's.

    Raises:
        SettingError: a model that cannot take the data, or has outputs of another shape; a loss
            that is no number for each sample.
    """
    x, y = data.take(data.splits["train"][:2], device=device)
    try:
        outputs = predict(x)
    except VectorizationError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        kind = "" if x.dtype == torch.float32 else f"{str(x.dtype).removeprefix('torch.')} "
        accepted = f"{kind}inputs {list(data.input_shape)} are what it gets ({reason})"
        raise SettingError("model", name, accepted) from error
    ahead, got = [members] if members is not None else [], list(outputs.shape)
    got = got if members is not None else got[1:]
    wanted = [[*ahead, len(x), width] for width in loss.widths]
    if got not in wanted:
        accepted = f"outputs {' or '.join(map(str, wanted))} are needed, not {got}"
        if members is None and name == Ensemble.__name__:
            accepted = "one network is needed; EnsembleTrainer trains several"
        raise SettingError("model", name, accepted)
    if loss.own:
        (loss.each if weighted else loss.mean)(outputs, y)


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
