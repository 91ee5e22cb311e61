"""A learning-rate schedule learnt by its gradient, against a cosine and a sweep at equal cost.

Axes: M candidates of a stack.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

from metalearn.data import ClassificationData, digits_data
from metalearn.studies.rows import Rows, percent
from metalearn.studies.stacks import fit_to_the_end, made_network, trained_stack
from metalearn.trainers import HyperTrainer

__all__ = ["compare_schedules"]

_HIDDEN = [32]
_STEPS, _OUTER, _NETWORKS = 50, 30, 5
_BATCH = 64
_RATES = tuple(0.01 * 10 ** (k / 6) for k in range(13))  # 0.01 to 1
_KINDS = ("cosine", "linear", "constant")
_MOMENTA = (0.9, 0.8, 0.95, 0.7)
_WARMUPS = (0, 5, 10)


def compare_schedules(seed: int) -> Rows:
    """Loss and accuracy after runs of 50 steps, mean over networks of five seeds.

    A sweep goes on, stack after stack of all rates, until it has cost what the learnt schedule
    did, in seconds of the processor; the last stack is finished. What has the least loss on the
    validation part is tested.
    """
    data, rows = digits_data(seed=seed), Rows()
    row = "cosine, rate tuned"
    with rows.timed(row):
        rate, _ = _best_rate(data, seed, schedule="cosine")
    _tested(rows, row, data, seed, rate, schedule="cosine")
    budget = _learnt(rows, data, seed)
    row, began, found = "sweep at equal cost", time.process_time(), []
    with rows.timed(row):
        for how in _sweep():
            found.append((_best_rate(data, seed, **how), how))
            if time.process_time() - began >= budget:
                break
    (rate, _), how = min(found, key=lambda several: several[0][1])
    _tested(rows, row, data, seed, rate, **how)
    rows.add(row, runs=float(len(found) * len(_RATES)))
    return rows


def _sweep() -> Iterator[dict[str, Any]]:
    for warmup, momentum, schedule in product(_WARMUPS, _MOMENTA, _KINDS):
        yield {"schedule": schedule, "momentum": momentum, "warmup": warmup}


def _best_rate(data: ClassificationData, seed: int, **how: Any) -> tuple[float, float]:
    """The best of all rates by the loss of validation after the last step, and that loss."""
    found = _stack(data, _RATES, [seed] * len(_RATES), how)
    best = min(found, key=lambda candidate: candidate.validation)
    return best.rate, best.validation


def _tested(
    rows: Rows, row: str, data: ClassificationData, seed: int, rate: float, **how: Any
) -> None:
    found = _stack(data, [rate] * _NETWORKS, range(seed, seed + _NETWORKS), how)
    mean = {name: sum(getattr(one, name) for one in found) / _NETWORKS for name in
            ("accuracy", "nll")}  # fmt: skip
    chosen = ", ".join(f"{name} {value}" for name, value in {**how, "rate": f"{rate:.3g}"}.items())
    rows.add(row, chosen, accuracy=percent(mean["accuracy"]), nll=mean["nll"])


def _stack(data: ClassificationData, rates: Any, seeds: Any, how: dict[str, Any]) -> Any:
    return trained_stack(
        made_network(data, _HIDDEN), data, rates, seeds=seeds, steps=_STEPS, batch_size=_BATCH,
        eval_every=_STEPS, log_every=_STEPS, **how,
    )  # fmt: skip


def _learnt(rows: Rows, data: ClassificationData, seed: int) -> float:
    """What the learning cost, in seconds of the processor."""
    row, network = "learnt by its gradient", made_network(data, _HIDDEN)
    with rows.timed(row):
        trainer = HyperTrainer(
            network(seed), data, hyper="learning_rates", factory=network, seed=seed, steps=_OUTER,
            inner={
                "steps": _STEPS, "batch_size": _BATCH, "lr": 0.1, "start": "fresh",
                "whole_runs": _NETWORKS,
            },
            optimizer=partial(torch.optim.Adam, lr=0.1), eval_every=10, progress=False,
        )  # fmt: skip
        fit_to_the_end(trainer)
    scores = trainer.test().headline()
    chosen = f"outer step {trainer.best_step}"
    accuracy, nll = scores["test/accuracy"], scores["test/nll"]
    rows.add(row, chosen, accuracy=percent(accuracy), nll=nll)
    return rows.numbers[row]["seconds"]
