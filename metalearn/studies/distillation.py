"""Ten distilled pictures of digits that networks are trained on, against ten real ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from metalearn.data import ClassificationData, digits_data
from metalearn.studies.rows import Rows, percent
from metalearn.studies.stacks import fit_to_the_end, made_network, trained_stack
from metalearn.trainers import DistilledExamples, HyperTrainer

__all__ = ["distil_digits"]

_HIDDEN = [32]
_RATES = (0.01, 0.03, 0.1, 0.3)
_STEPS, _OUTER, _NETWORKS = 20, 60, 5


def distil_digits(seed: int) -> Rows:
    """Accuracy of networks of five initialisations, trained on one picture of each class.

    Pictures learnt for one initialisation are tested with it alone. The rate of real pictures is
    the best of a few by validation; that of distilled ones is learnt.
    """
    data, rows = digits_data(seed=seed), Rows()
    _real(rows, data, seed)
    for row, start, count in (
        ("distilled for one network", "fixed", 1),
        ("distilled for any network", "fresh", _NETWORKS),
    ):
        with rows.timed(row):
            trainer = _trainer(data, seed, start=start, whole_runs=count, lr=0.1)
            fit_to_the_end(trainer)
        accuracy = percent(trainer.test().headline()["test/accuracy"])
        rows.add(row, f"outer step {trainer.best_step}", accuracy=accuracy)
    with rows.timed("all training pictures"):
        whole = trained_stack(
            made_network(data, _HIDDEN), data, [0.1] * _NETWORKS, steps=400, batch_size=64,
            seeds=range(seed, seed + _NETWORKS), eval_every=50, monitor="accuracy",
        )  # fmt: skip
    mean = sum(one.accuracy for one in whole) / len(whole)
    rows.add("all training pictures", accuracy=percent(mean))
    return rows


def _real(rows: Rows, data: ClassificationData, seed: int) -> None:
    found = []
    with rows.timed("ten real pictures"):
        for rate in _RATES:
            trainer = _trainer(data, seed, start="fresh", whole_runs=_NETWORKS, lr=rate)
            validated = trainer.validate()["validation/accuracy"]
            found.append((validated, rate, trainer.test().headline()["test/plain_accuracy"]))
    _, rate, accuracy = max(found)
    rows.add("ten real pictures", f"rate {rate}", accuracy=percent(accuracy))


def _trainer(data: ClassificationData, seed: int, **inner: Any) -> HyperTrainer:
    network = made_network(data, _HIDDEN)
    return HyperTrainer(
        network(seed), data, hyper=partial(DistilledExamples, rate=True), factory=network,
        seed=seed, inner={"steps": _STEPS, **inner}, steps=_OUTER, eval_every=20,
        monitor="accuracy", optimizer=partial(torch.optim.Adam, lr=0.05), progress=False,
    )  # fmt: skip
