"""What privacy of tasks costs a meta-learner: error on new tasks at several ε, and time of a step.

Rates were chosen beforehand by public validation tasks of seed 100, which no row has.

Axes: N users, T tasks of a step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from metalearn.models import MLP, Conv4
from metalearn.studies.rows import Rows
from metalearn.tasks import SinusoidTasks, omniglot_tasks
from metalearn.trainers import MAML, MetaTrainer, PrivateMetaTrainer

__all__ = ["task_privacy_errors", "task_privacy_times"]

_DELTA = 1e-5
_TASKS = 600  # of the test
_ROUNDS = 15
_RUN: dict[str, Any] = {
    "steps": 1000, "meta_batch": 128, "progress": False, "eval_every": 1000, "log_every": 1000,
    "checkpoint_every": 1000,
}  # fmt: skip
_QUIET: dict[str, Any] = {
    "noise": "seeded", "noise_multiplier": 1e-9, "max_norm": 1e5, "clip": 10.0,
}  # fmt: skip
"""Of the rows without privacy: as good as no noise, and no clipping of single tasks."""


def task_privacy_errors(users: int, rates: Mapping[float | None, float], seed: int) -> Rows:
    """Sine waves by MAML in one inner step: each ε, and none, of the same users.

    Args:
        users: N.
        rates: by ε, None without privacy, the learning rate of Adam.
        seed: of tasks and networks.
    """
    rows = Rows()
    for epsilon, rate in rates.items():
        name = "without privacy" if epsilon is None else f"ε = {epsilon:g}"
        private: Any = {"epsilon": epsilon, "delta": _DELTA} if epsilon else _QUIET
        with rows.timed(name):
            trainer = PrivateMetaTrainer(
                MLP((1,), 1, hidden=(40, 40), seed=seed), SinusoidTasks(seed=seed),
                maml=MAML(inner_lr=0.01, inner_steps=1, eval_steps=1), users=users, seed=seed,
                optimizer=partial(torch.optim.Adam, lr=rate), **private, **_RUN,
            )  # fmt: skip
            trainer.fit()
        chosen = f"rate {rate:g}"
        if epsilon is not None:
            chosen += f", σ {trainer.mechanism.noise_multiplier:.2f}"
        losses = trainer.test(_TASKS).losses[0]
        rows.add(name, chosen, before=float(losses[0]), after=float(losses[-1]))
    return rows


def task_privacy_times(seed: int) -> Rows:
    """A private step beside an ordinary one of as many tasks, in turns: medians.

    They are milliseconds of the processor, with the drawing of tasks.

    Args:
        seed: of tasks and networks.
    """
    rows = Rows()
    for name, make in _steps(seed).items():
        plain, private = make(MetaTrainer), make(PrivateMetaTrainer)
        times: dict[str, list[float]] = {"plain": [], "private": []}
        for turn in range(_ROUNDS + 2):
            for kind, trainer in (("plain", plain), ("private", private)):
                began = time.process_time()
                trainer.gradient(turn)
                times[kind].append(1e3 * (time.process_time() - began))
        middle = {kind: statistics.median(found[2:]) for kind, found in times.items()}
        ratios = [b / a for a, b in zip(times["plain"][2:], times["private"][2:])]
        rows.add(name, **middle, ratio=statistics.median(ratios))
    return rows


def _steps(seed: int) -> dict[str, Callable[[Any], Any]]:
    """Trainers of either kind, all of whose steps have the same number of tasks."""
    waves = partial(SinusoidTasks, seed=seed)
    letters = partial(omniglot_tasks, split="alphabets", way=5, within_group=True, seed=seed)
    maml = MAML(inner_lr=0.01, inner_steps=1)

    def made(
        tasks: Callable[[], Any], model: Any, count: int, users: int | None, **how: Any
    ) -> Any:
        def trainer(kind: Any) -> Any:
            private: Any = {}
            if kind is PrivateMetaTrainer:
                private = {"users": users, "noise_multiplier": 1.0, "sampling": "fixed_size"}
                private |= {"accountant": "rdp", "reserve": 100, "delta": 1e-5}
            return kind(model(), tasks(), meta_batch=count, progress=False, **how, **private)

        return trainer

    mlp = partial(MLP, (1,), 1, hidden=(40, 40), seed=seed)
    conv4 = partial(Conv4, (1, 28, 28), 5, filters=32, seed=seed)
    features = partial(Conv4, (1, 28, 28), 5, filters=32, head=False, seed=seed)
    return {
        "MAML, sine waves, 25 tasks": made(waves, mlp, 25, 2000, maml=maml),
        "MAML, sine waves, 256 tasks": made(waves, mlp, 256, 2000, maml=maml),
        "MAML, conv4, 16 tasks of letters": made(letters, conv4, 16, None, maml=maml),
        "ProtoNet, conv4, 16 tasks of letters": made(
            letters, features, 16, None, learner="protonet"
        ),
    }
