"""Training steps that ranks share, against those of one process.

Axes: R ranks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metalearn.benchmarks.clipped_networks import mnist_network
from metalearn.benchmarks.ensembles import ENSEMBLES
from metalearn.benchmarks.shared_steps import QUIET, step_times, turn
from metalearn.data import ClassificationData, LabelledImages
from metalearn.models import Conv4, Ensemble
from metalearn.ranks import joined
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, EnsembleTrainer, MetaTrainer, PerSampleTrainer, Trainer

__all__ = ["LAYOUTS", "TRAININGS", "SharedTiming", "shared_race", "shared_table", "take_part"]

_STEPS = 24
"""Of a turn."""
_CLASSES, _PICTURES = 60, 4
LAYOUTS: dict[str, tuple[int, int]] = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two ranks, one thread each": (2, 1),
}
"""Ranks and threads of each."""


def _pictures() -> LabelledImages:
    """Of no meaning: what a step takes does not depend on it."""
    count = _CLASSES * _PICTURES
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 28, 28), generator=draws, dtype=torch.uint8)
    classes = tuple(range(_CLASSES))
    return LabelledImages(
        images,
        torch.arange(_CLASSES).repeat_interleave(_PICTURES),
        tuple(f"class{c}" for c in classes),
        ("all",) * _CLASSES,
        {"train": classes[:20], "validation": classes[20:40], "test": classes[40:]},
    )


def _samples(*shape: int) -> ClassificationData:
    count = 1200
    draws = torch.Generator().manual_seed(0)
    splits = torch.split(torch.arange(count), [count - 2, 1, 1])
    return ClassificationData(
        torch.randn(count, *shape, generator=draws),
        torch.arange(count) % 10,
        tuple(map(str, range(10))),
        dict(zip(("train", "validation", "test"), splits)),
    )


def _tasks(way: int, count: int, steps: int) -> Callable[..., Trainer]:
    def make(**how: Any) -> Trainer:
        tasks = FewShotTasks(_pictures(), way=way, shot=1, query=1)
        maml = MAML(inner_lr=0.1, inner_steps=steps, eval_steps=steps, engine="batched")
        return MetaTrainer(Conv4((1, 28, 28), way), tasks, maml=maml, meta_batch=count, **how)

    return make


def _members(name: str, count: int) -> Callable[..., Trainer]:
    def make(**how: Any) -> Trainer:
        kind = ENSEMBLES[name]
        model = Ensemble.from_modules([kind.make(seed) for seed in range(count)])
        return EnsembleTrainer(model, _samples(*kind.input_shape), engine="batched", **how)

    return make


def _per_sample(**how: Any) -> Trainer:
    model: nn.Module = mnist_network()
    quiet: Any = {"diagnostics": (), "batch_size": 64}
    return PerSampleTrainer(model, _samples(1, 28, 28), **quiet, **how)


TRAININGS: dict[str, tuple[str, Callable[..., Trainer]]] = {
    "W1": ("conv4, 5-way 1-shot, 32 tasks, 1 step", _tasks(5, 32, 1)),
    "W2": ("conv4, 20-way 1-shot, 8 tasks, 5 steps", _tasks(20, 8, 5)),
    "per_sample": ("opacus' MNIST network, clipped, batch 64", _per_sample),
    "members_conv": ("16 × two convolutions on 8×8", _members("digits_conv", 16)),
    "members_mlp": ("16 × MLP 64-64-64-10", _members("mlp", 16)),
}
"""By name, what is said of it and what makes its trainer."""


@dataclass(frozen=True)
class SharedTiming:
    """Medians over rounds, of a training step."""

    training: str
    milliseconds: Mapping[str, float]
    """By layout."""
    efficiency: float
    """T(one process, one thread) ÷ (2·T(two ranks))."""
    machine: float
    """T(one process, one thread) ÷ T(two such processes at once, which share nothing): what the
    machine leaves of a second processor, and so the most that the efficiency could be."""
    gain: float
    """T(one process, two threads) ÷ T(two ranks)."""
    meeting: float
    """Share of a step of two ranks that goes to meetings, waiting for the slower one included."""
    sent: float
    """Bytes that a rank brings to the meetings of a step."""


def shared_race(names: Sequence[str], *, rounds: int) -> list[SharedTiming]:
    """Time trainings, layout by layout and round by round, each in new processes."""
    timings = []
    for name in names:
        code = f"from {__name__} import take_part; take_part({name!r})"
        turns, apart = [], []
        for _ in range(rounds):
            turns.append({layout: turn(code, *LAYOUTS[layout])[0] for layout in LAYOUTS})
            both = turn(code, 1, 1, groups=2)
            apart.append(statistics.mean(one["step"] for one in both))
        alone, threads, ranks = ([turn[layout]["step"] for turn in turns] for layout in LAYOUTS)
        two = [turn["two ranks, one thread each"] for turn in turns]
        timings.append(
            SharedTiming(
                name,
                {n: 1e3 * statistics.median(turn[n]["step"] for turn in turns) for n in LAYOUTS},
                statistics.median(a / (2 * b) for a, b in zip(alone, ranks)),
                statistics.median(a / b for a, b in zip(alone, apart)),
                statistics.median(a / b for a, b in zip(threads, ranks)),
                statistics.median(turn["meeting"] / turn["step"] for turn in two),
                two[0]["sent"],
            )
        )
    return timings


def shared_table(timings: Sequence[SharedTiming]) -> str:
    """Markdown."""
    columns = ["step, ms", *LAYOUTS, "efficiency", "machine", "÷ two threads", "meetings"]
    rows = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for t in timings:
        times = " | ".join(f"{t.milliseconds[layout]:.2f}" for layout in LAYOUTS)
        meetings = f"{t.meeting:.0%}, {t.sent / 1e3:,.0f} kB"
        title = TRAININGS[t.training][0]
        ratios = f"{t.efficiency:.2f} | {t.machine:.2f} | {t.gain:.2f}"
        rows.append(f"| {title} | {times} | {ratios} | {meetings} |")
    return "\n".join(rows)


def take_part(name: str) -> None:
    """Train as one of the ranks that the environment tells of; the first prints what it found."""
    with joined() as ranks:
        found = step_times(TRAININGS[name][1](ranks=ranks, steps=_STEPS, **QUIET), ranks)
        if ranks.rank == 0:
            print(json.dumps(found))
