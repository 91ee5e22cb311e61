"""Whether the runs of a sweep could be trained as the members of one ensemble, and how.

Axes: M members, one for each job.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write

from metalearn.cli.given_settings import flat_settings, plain_value
from metalearn.cli.usage import typed
from metalearn.errors import SettingError

__all__ = ["OneStack", "check_sweep", "one_stack", "put_one_stack"]

_SWEEPS = ("separate", "stacked")

_GROUPS = ("data", "ood", "model", "optimizer", "trainer")
_OWN = ("lr", "weight_decay", "label_smoothing", "dropout")
"""Settings of the trainer of which members have their own."""
_OF_OPTIMIZER = ("lr", "weight_decay")
"""Those that are the optimiser's where the trainer has none."""
_ALONE = ("init_from", "optimizer.groups", "data.member_weights")
"""What is another thing for several members than for one."""


@dataclass(frozen=True)
class OneStack:
    """The run that trains the jobs of a sweep as its members."""

    members: int
    script: str
    """The command's name."""
    overrides: Sequence[str]
    """What is typed behind it."""

    @property
    def command(self) -> str:
        """As it is typed in a shell."""
        return " ".join([typed(self.script), *map(shlex.quote, self.overrides)])


def check_sweep(config: DictConfig, *, several: bool) -> None:
    """Refuse ``sweep`` where it has another value than those it takes, or no runs to stack.

    Args:
        config: composed; commands that do not train have no such setting.
        several: whether it is that of a sweep.

    Raises:
        SettingError: as said.
    """
    value = config.get("sweep", "separate")
    if value not in _SWEEPS:
        raise SettingError("sweep", value, f"{' or '.join(_SWEEPS)} is needed")
    if value == "stacked" and not several:
        raise SettingError("sweep", value, "-m is needed, and settings of several values")


def put_one_stack(config: DictConfig, stack: OneStack | None, jobs: int) -> None:
    """Have a sweep consist of the one run that trains all as its members.

    Args:
        config: of the sweep, with its ``hydra`` node; changed.
        stack: that run; None where there cannot be one.
        jobs: how many runs it would stand for.

    Raises:
        SettingError: there cannot be one.
    """
    if jobs < 2:
        accepted = "at least two runs are needed: a setting of several values"
        raise SettingError("sweep", "stacked", accepted)
    if stack is None:
        accepted = (
            "runs of trainer=ensemble trainer.members=1 are needed that differ in seed and in "
            f"{', '.join(_OWN)} alone, by Hydra's own sweeper; separate trains any"
        )
        raise SettingError("sweep", "stacked", accepted)
    with read_write(config.hydra):
        config.hydra.overrides.task = list(stack.overrides)
        if "params" in config.hydra.sweeper:
            config.hydra.sweeper.params = None  # they are among those


def one_stack(jobs: Sequence[DictConfig], *, typed_anew: bool = True) -> OneStack | None:
    """The one run that trains all of a sweep as its members; None where there is none.

    They can where each trains an ensemble of a single member, and they differ in nothing but what
    members have of their own: then member m sees the draws that run m would see.

    Args:
        jobs: of a sweep, composed, with their ``hydra`` nodes.
        typed_anew: whether it is for a person to type, who would need options of this command too.
    """
    options = ("--config", "-cd", "-cn", "-cp")
    elsewhere = typed_anew and any(word.startswith(options) for word in sys.argv)
    if elsewhere or len(jobs) < 2 or not all(_is_single(job) for job in jobs):
        return None
    flat = [_settings(job) for job in jobs]
    names = {name for settings in flat for name in settings}
    if all(each.get("model.seed") == each.get("seed") for each in flat):
        names.discard("model.seed")  # which is the member's
    differing = {n for n in names if any(each.get(n) != flat[0].get(n) for each in flat)}
    places = {n: [f"trainer.{n}", *([f"optimizer.{n}"] * (n in _OF_OPTIMIZER))] for n in _OWN}
    known = {"seed", "trainer.seeds", *(place for several in places.values() for place in several)}
    seeds = [_seed(each) for each in flat]
    one_order = flat[0].get("trainer.shuffle") == "shared"
    if not differing or not differing <= known or (one_order and len(set(seeds)) > 1):
        return None
    if any(not _is_one(flat[0].get(f"trainer.{name}")) for name in _OWN):
        return None
    changes: dict[str, Sequence[Any]] = {"trainer.seeds": seeds}
    for name in _OWN:
        if differing & set(places[name]):
            changes[f"trainer.{name}"] = [_first(each, places[name]) for each in flat]
    if any(not _is_number(value) for several in changes.values() for value in several):
        return None
    return _stack(jobs[0], differing, changes)


def _stack(job: DictConfig, differing: set[str], changes: Mapping[str, Sequence[Any]]) -> OneStack:
    count = len(changes["trainer.seeds"])
    left = {*differing, *changes, "trainer.members", "sweep"} - {"seed"}
    texts = [str(text) for text in job.hydra.overrides.task]
    words = [text for text in texts if text.lstrip("+").partition("=")[0] not in left]
    words.append(f"trainer.members={count}")
    words += [f"{name}=[{','.join(map(str, several))}]" for name, several in changes.items()]
    return OneStack(count, str(job.hydra.job.name), tuple(words))


def _is_single(job: DictConfig) -> bool:
    trainer = job.get("trainer") or {}
    named = trainer.get("_target_") == "metalearn.trainers.EnsembleTrainer"
    alone = all(OmegaConf.select(job, name) is None for name in _ALONE)
    return named and trainer.get("members") == 1 and alone


def _settings(job: DictConfig) -> dict[str, Any]:
    """Those that an ensemble has a use for; other groups are composed beside them."""
    own = [key for key in job if key in _GROUPS or not OmegaConf.is_dict(job[key])]
    found = flat_settings({str(key): plain_value(job[key], resolve=True) for key in own})
    return {name: value for name, value in found.items() if not isinstance(value, dict)}


def _seed(settings: Mapping[str, Any]) -> Any:
    return (settings.get("trainer.seeds") or [settings.get("seed")])[0]


def _first(settings: Mapping[str, Any], places: Sequence[str]) -> Any:
    """The value that counts, of one member."""
    values = [settings[place] for place in places if settings.get(place) is not None]
    value = values[0] if values else None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _is_one(value: Any) -> bool:
    """Whether a setting that is given once goes for every member alike."""
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
