"""What is printed when a training starts: what is trained, on what, where, and how it is watched.

Axes: M members.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from metalearn.cli.building import groups_of
from metalearn.cli.choice_names import name_of
from metalearn.cli.given_settings import plain_value
from metalearn.models import Ensemble
from metalearn.tracking import device_name
from metalearn.tracking.backends import DEFAULT_TRACKER, watched
from metalearn.trainers import Trainer
from metalearn.trainers.loop.unvalidated import Unvalidated

__all__ = ["start_block"]

_WIDTH = len("run folder: ")
_SPLITS: Mapping[Any, str] = {"train": "training", "validation": "validation", "test": "test"}


def start_block(
    folder: Path, config: DictConfig, trainer: Trainer, choices: Mapping[str, str | None]
) -> str:
    """A few aligned lines; engines are measured later, and the log says them with the reason.

    Args:
        folder: of the run.
        config: of the run, resolved where it is asked.
        trainer: built of it, and resumed where it goes on.
        choices: of groups, as they were typed; what is missing is named by what it builds.
    """
    names = _Names(config, choices)
    rows = {
        "run folder": str(folder),
        "data": _data(names, config, trainer),
        "model": _model(names, config, trainer),
        "device": _device(trainer),
        "steps": _steps(config, trainer),
        "watched": _watched(trainer),
        "dashboard": watched(plain_value(config.get("tracker", DEFAULT_TRACKER)), folder),
    }
    return "\n".join(f"{f'{name}:':<{_WIDTH}}{text}" for name, text in rows.items())


class _Names:
    """What a group is called: as typed, else by what it builds."""

    def __init__(self, config: DictConfig, choices: Mapping[str, str | None]) -> None:
        self.config, self.choices = config, choices

    def __call__(self, group: str) -> str:
        typed = self.choices.get(group)
        if typed is not None:
            return str(typed)
        return name_of(group, self.config[group])


def _data(names: _Names, config: DictConfig, trainer: Trainer) -> str:
    tasks, data = getattr(trainer, "tasks", None), getattr(trainer, "data", None)
    if tasks is not None:
        return f"{names('task')}, {', '.join(_of_tasks(config, tasks))}"
    if data is None or not hasattr(data, "size"):
        return names("data")
    sizes = ", ".join(f"{data.size(split):,} {word}" for split, word in _SPLITS.items())
    what = "classes" if data.kind == "classification" else "targets"
    text = f"{names('data')}, {data.outputs} {what}; samples: {sizes}"
    second = getattr(getattr(trainer, "training", None), "ood", None)
    if second is not None:
        text += f"; {second.size('test'):,} of {names('ood')} to be found uncertain"
    return text


def _of_tasks(config: DictConfig, tasks: Any) -> Iterator[str]:
    """What a task is made of, and of how many classes tasks are drawn."""
    task = config.task
    numbers = [(name, plain_value(task.get(name), resolve=True)) for name in ("way", "shot")]
    shown = [f"{value}-{name}" for name, value in numbers if isinstance(value, int)]
    if shown:
        yield " ".join(shown)
    query = plain_value(task.get("query"), resolve=True)
    if isinstance(query, int):
        yield f"{query} queries" + (" a class" if tasks.kind == "classification" else "")
    yield f"inputs {'×'.join(str(size) for size in tasks.input_shape)}"


def _model(names: _Names, config: DictConfig, trainer: Trainer) -> str:
    module, name = trainer.module, names("model")
    groups = groups_of(config)
    if "hyper" in groups:
        learnt = _count(module)
        return f"{name}; learnt: {learnt:,} numbers of {names('hyper')}"
    if isinstance(module, Ensemble):
        members = len(module)
        each = _count(module) // members
        return f"{members} × {name}, {each:,} parameters each"
    text = f"{name}, {_count(module):,} parameters"
    return f"{text}; learner {names('learner')}" if "learner" in groups else text


def _count(module: nn.Module) -> int:
    return sum(part.numel() for part in module.parameters() if part.requires_grad)


def _device(trainer: Trainer) -> str:
    ranks, threads = trainer.loop.ranks.count, torch.get_num_threads()
    shared = f", {ranks} ranks" if ranks > 1 else ""
    own = f", {threads} thread{'s' * (threads > 1)}" if trainer.device.type == "cpu" else ""
    low = trainer.settings.precision
    return f"{device_name(trainer.device)}{own}{shared}{'' if low == 'float32' else f', {low}'}"


def _steps(config: DictConfig, trainer: Trainer) -> str:
    settings = trainer.settings
    text = f"{settings.steps:,}"
    for name, what in (("meta_batch", "tasks"), ("batch_size", "samples")):
        size = config.trainer.get(name)
        if isinstance(size, int):
            text += f" of {size} {what}"
    if trainer.step:
        text += f", going on from {trainer.step:,}"
    return text


def _watched(trainer: Trainer) -> str:
    settings = trainer.settings
    if isinstance(trainer.loop.evaluator, Unvalidated):
        return "nothing is validated; the last state is kept"
    best = "largest" if trainer.larger_is_better else "smallest"
    patience = settings.patience
    early = "no early stopping" if patience is None else f"stops after {patience} without a better"
    return f"{trainer.monitor} every {_steps_in_words(settings.eval_every)}, {best} kept; {early}"


def _steps_in_words(count: int) -> str:
    return "step" if count == 1 else f"{count:,} steps"
