"""Training parts with wrong labels or rare classes: learnt weights against what else would be done.

Axes: N training examples.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from metalearn.attribution import label_issues, out_of_sample_probabilities
from metalearn.data import ClassificationData, digits_data, imbalanced, mislabelled
from metalearn.studies.rows import Rows, percent
from metalearn.studies.stacks import Candidate, fit_to_the_end, made_network, sgd_of, trained_stack
from metalearn.trainers import HyperTrainer, LearntExampleWeights
from metalearn.trainers.hyper.outer_batches import divided_validation

__all__ = ["train_imbalanced", "train_mislabelled"]

_HIDDEN = [32]
_RATES = (0.03, 0.1, 0.3)
_GAMMAS = (1.0, 2.0, 5.0)
_RULES: Any = ("noise_rate", "class", "both")
_STEPS, _OUTER = 60, 24
_WHOLE = 200  # steps of ordinary runs, of which validation chooses the state
_RUN: dict[str, Any] = {"batch_size": 64, "schedule": "cosine"}


def train_mislabelled(seed: int) -> Rows:
    """Digits of which 30 % of the training labels are wrong; those of validation are right."""
    return _compared(mislabelled(digits_data(seed=seed), fraction=0.3, seed=seed), seed)


def train_imbalanced(seed: int) -> Rows:
    """Digits of which the first class has 100 times as many training examples as the last."""
    return _compared(imbalanced(digits_data(seed=seed), ratio=100, seed=seed), seed)


def _compared(data: ClassificationData, seed: int) -> Rows:
    rows = Rows()
    with rows.timed("uniform"):
        best = _best(data, seed)
    rows.add("uniform", f"rate {best.rate}", accuracy=percent(best.accuracy))
    with rows.timed("uniform, to the last step"):
        last = _best(data, seed, eval_every=_WHOLE)
    rows.add("uniform, to the last step", f"rate {last.rate}", accuracy=percent(last.accuracy))
    row = "uniform, half of validation added"
    with rows.timed(row):
        added = _best(_with_half_of_validation(data), seed)
    rows.add(row, f"rate {added.rate}", accuracy=percent(added.accuracy))
    _focal(rows, data, seed)
    _confident(rows, data, seed, best.rate)
    _learnt(rows, data, seed)
    return rows


def _best(data: ClassificationData, seed: int, **settings: Any) -> Candidate:
    """Of all rates, by the accuracy of validation."""
    found = trained_stack(
        made_network(data, _HIDDEN), data, _RATES, seeds=[seed] * len(_RATES), steps=_WHOLE,
        monitor="accuracy", **_RUN, **{"eval_every": 20, **settings},
    )  # fmt: skip
    return min(found, key=lambda candidate: candidate.validation)


def _focal(rows: Rows, data: ClassificationData, seed: int) -> None:
    with rows.timed("focal loss"):
        found = [
            (_best(data, seed, loss={"name": "focal", "gamma": gamma}), gamma) for gamma in _GAMMAS
        ]
    best, gamma = min(found, key=lambda pair: pair[0].validation)
    rows.add("focal loss", f"γ {gamma}, rate {best.rate}", accuracy=percent(best.accuracy))


def _confident(rows: Rows, data: ClassificationData, seed: int, rate: float) -> None:
    """Cross-validated with the rate of uniform training, pruned by a rule that validation chose."""
    network, labels = made_network(data, _HIDDEN), data.part("train")[1]
    with rows.timed("confident learning"):
        probabilities = out_of_sample_probabilities(
            network(seed), data, seed=seed, optimizer=partial(sgd_of(), lr=rate), clip=None,
            steps=_STEPS, progress=False, **_RUN,
        )  # fmt: skip
        found = []
        for rule in _RULES:
            keep = ~label_issues(labels, probabilities, rule=rule)
            if int(keep.sum()) >= _RUN["batch_size"]:
                found.append((_best(_with_training(data, keep), seed), rule, int((~keep).sum())))
    best, rule, pruned = min(found, key=lambda several: several[0].validation)
    chosen = f"rule {rule}, {pruned} of {len(labels)} pruned, rate {best.rate}"
    rows.add("confident learning", chosen, accuracy=percent(best.accuracy))


def _learnt(rows: Rows, data: ClassificationData, seed: int) -> None:
    """Weights by half of the validation part; networks trained with them as all others are.

    The other half alone chooses the outer step, and the rate and the state of these networks.
    """
    with rows.timed("learnt weights"):
        trainer = HyperTrainer(
            made_network(data, _HIDDEN)(seed), data, seed=seed, steps=_OUTER,
            hyper=partial(LearntExampleWeights, bound="positive"),
            inner={"steps": _STEPS, "lr": 0.1, **_RUN}, eval_every=6, schedule="constant",
            optimizer=partial(torch.optim.Adam, lr=0.3), progress=False,
        )  # fmt: skip
        fit_to_the_end(trainer)
        hyper: Any = trainer.module
        weights = hyper.current().in_loss["weights"]
        table = (weights / weights.mean()).expand(len(_RATES), -1)
        chosen_by: Any = divided_validation(data)[1]
        best = _best(chosen_by, seed, member_weights=table)
    chosen = f"outer step {trainer.best_step}, rate {best.rate}"
    rows.add("learnt weights", chosen, accuracy=percent(best.accuracy))


def _with_half_of_validation(data: ClassificationData) -> ClassificationData:
    """The half that learnt weights have in their outer loss, among the training examples."""
    outer, divided = divided_validation(data)
    train = torch.cat([data.splits["train"], outer])
    return replace(divided, splits={**divided.splits, "train": train})  # type: ignore[return-value]


def _with_training(data: ClassificationData, keep: torch.Tensor) -> ClassificationData:
    return replace(data, splits={**data.splits, "train": data.splits["train"][keep]})
