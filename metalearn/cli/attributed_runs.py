"""What ``attribute`` explains: the networks of a run's folder, with the run that made them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from metalearn.attribution.kept_on_disk import StatesOnDisk, WalkCheckpoint
from metalearn.attribution.scored_network import ScoredNetwork, ScoreSettings
from metalearn.attribution.training_run import TrainingRun, training_run
from metalearn.cli.given_settings import plain_value
from metalearn.errors import SettingError, check_whole
from metalearn.tracking import write_json
from metalearn.trainers import Trainer

__all__ = ["AttributedNetwork", "members_of", "network_of", "state_of", "steps_of", "targets_of"]

_OF_A_WALK = ("checkpoint", "split", "targets", "memory", "spill")
_FAR = 1e-3  # of the parameters' size: what a run that is made again may differ by


@dataclass(frozen=True)
class AttributedNetwork:
    """A network, what saves the walk through its run, and what speaks against it."""

    network: ScoredNetwork
    saver: WalkCheckpoint
    warning: str
    """Empty, or by how much the run, made again, ends elsewhere than it did."""


def targets_of(trainer: Trainer, config: DictConfig) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Samples of the split, and their places in it."""
    data = trainer.data  # type: ignore[attr-defined]
    x, y = data.part(config.split)
    asked = plain_value(config.targets)
    rows = torch.tensor(asked) if isinstance(asked, list) else torch.arange(min(asked, len(x)))
    if int(rows.max()) >= len(x):
        accepted = f"places from 0 to {len(x) - 1} of the {config.split} split are needed"
        raise SettingError("targets", int(rows.max()), accepted)
    return (x[rows], y[rows]), rows


def members_of(trainer: Trainer, config: DictConfig) -> list[int]:
    """Which networks of the run."""
    count = len(trainer.active)
    asked = plain_value(config.members)
    for member in asked or []:
        check_whole("members", member, 0, count - 1)
    return list(range(count)) if asked is None else asked


def state_of(members: Sequence[int], steps: Sequence[int]) -> str:
    """Where networks stood, in words that follow "the network": ``"after step 400"``.

    Args:
        members: numbers of the networks.
        steps: after how many steps each stood, which is not the same where some were frozen, or
            where each has a best state of its own.
    """
    mean = f", the mean of {len(members)} members" if len(members) > 1 else ""
    if len(set(steps)) == 1:
        return f"after step {steps[0]}{mean}"
    at: dict[int, list[str]] = {}
    for member, step in zip(members, steps):
        at.setdefault(step, []).append(str(member))
    parts = [f"{', '.join(numbers)} after step {step}" for step, numbers in sorted(at.items())]
    return f"of {len(members)} members, their mean: {'; '.join(parts)}"


def network_of(
    fresh: Trainer, loaded: Trainer, config: DictConfig, member: int, targets: Any, folder: Path
) -> AttributedNetwork:
    """One network of a run.

    Args:
        fresh: the run's trainer before its first step.
        loaded: in the state that is explained.
        config: of the command.
        member: which network.
        targets: that are to be explained.
        folder: of the run.

    Raises:
        SettingError: a run that is more than steps of an optimiser, or a state before the first.
    """
    steps = steps_of(loaded, config.checkpoint, member)
    run = training_run(fresh, member=member, steps=steps)
    module = loaded.network_run(member).module  # type: ignore[attr-defined]
    params = {n: p.detach() for n, p in module.named_parameters() if n in run.params}
    settings = {name: plain_value(config[name]) for name in ScoreSettings.__dataclass_fields__}
    saver = WalkCheckpoint(folder / "attribution" / f"member-{member}" / "walk.pt")
    network = ScoredNetwork(
        run, params, targets, ScoreSettings(**settings), _walk(config, saver, run)
    )
    ((_, again),) = run.states([steps])
    apart = sum(float((again[n] - p).square().sum()) for n, p in params.items()) ** 0.5
    apart /= sum(float(p.square().sum()) for p in params.values()) ** 0.5
    warning = (
        f"the run of network {member}, made again, ends {apart:.2g} of its size away from the "
        "weights that were saved: its data, its code or its machine are not those of then"
    )
    return AttributedNetwork(network, saver, "" if apart <= _FAR else warning)


def steps_of(loaded: Trainer, checkpoint: str, member: int) -> int:
    """After how many steps a network stood where it is explained.

    A member that was frozen stands where it was then, one that diverged at its best.
    """
    population = loaded.loop.population
    steps, best = loaded.step, int(population.best_steps[member])
    if checkpoint == "best" or population.diverged[member]:
        steps = best
    elif not population.active[member] and population.patience is not None:
        steps = min(steps, best + population.patience * loaded.settings.eval_every)
    if steps < 1:
        accepted = "a state after the first step is needed: another checkpoint, or other members"
        raise SettingError("checkpoint", checkpoint, accepted)
    return steps


def _walk(config: DictConfig, saver: WalkCheckpoint, run: TrainingRun) -> dict[str, Any]:
    """Where states of the walk are kept, and where it goes on; that of other settings is over."""
    place, device = saver.path.parent, run.rates.device
    asked = {name: plain_value(config[name]) for name in _OF_A_WALK} | {"steps": run.steps}
    resume = saver.snapshot(device) if _read(place / "settings.json") == asked else None
    if config.spill and not (place / "states" / "state-0.pt").is_file():
        resume = None  # the walk had come to its end
    if resume is None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "settings.json", asked)
    found: dict[str, Any] = {"progress": saver, "resume": resume}
    if config.spill:
        found["kept"] = StatesOnDisk(place / "states", device)
    return found


def _read(path: Path) -> Any:
    """What a file of JSON holds; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
