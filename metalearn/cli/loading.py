"""What a run's folder holds, as objects: for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, cast

import torch
from omegaconf import DictConfig
from torch import nn

from metalearn.cli.building import build
from metalearn.cli.determinism import determinism
from metalearn.cli.networks import kept_weights
from metalearn.cli.processes import ranks_of_command
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import claimed, existing_run, writing_to
from metalearn.cli.same_run import check_same_data, check_same_settings
from metalearn.errors import SettingError
from metalearn.models import Ensemble, Predictor
from metalearn.ranks import OneRank, Ranks
from metalearn.signatures import checked
from metalearn.trainers import MetaLearner, Trainer

__all__ = [
    "load",
    "load_ensemble",
    "load_learner",
    "load_module",
    "run_to_look_into",
    "trainer_of",
]


@checked
def load(
    folder: str | Path,
    trainer: Trainer | None = None,
    *,
    which: Literal["best", "last"] = "best",
    trust: bool = False,
    device: str | torch.device | None = None,
) -> Trainer:
    """The trainer of a run's folder, in a state that was saved: ``load("outputs/…").reports()``.

    It has its ``module``, with the parameters of that state, and its ``tasks`` or ``data``; a run
    on tasks has a ``learner`` to adapt, an ensemble ``predict`` and ``predictive``. `fit` goes on
    from there, and writes nothing into the folder: ``resume=<folder>`` on the command line does.
    The data of tasks are looked for (or downloaded) when the first task is drawn: a learner adapts
    without them.

    Args:
        folder: of a run, from the command line or from Python.
        trainer: made from the same model, data and settings as the one that trained. A trainer
            given a ``folder`` in Python leaves checkpoints there, and nothing that says what it is
            made of; it is needed for those, and takes the state.
        which: the state at the best validation, or the last that was saved.
        trust: whether the run's ``config.yaml`` may name any importable object to be called.
        device: where to put it; ``"auto"`` is an accelerator, where there is one. None is the CPU,
            or where the given ``trainer`` is.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
    """
    if which not in ("best", "last"):
        raise SettingError("which", which, "best or last is needed")
    if trainer is not None:
        if device is not None:
            raise SettingError(
                "device", device, "None is needed: a given trainer stays where it is"
            )
        if trust is not False:
            raise SettingError("trust", trust, "false is needed: beside a trainer nothing is built")
        trainer.resume(_checkpoint(Path(folder), which))
        return trainer
    path = Path(folder)
    if not (path / "config.yaml").is_file() and _checkpoint(path, "last").is_file():
        accepted = (
            "the trainer is needed too, load(folder, trainer): this run was made in Python, so "
            "that no config.yaml says what it is made of"
        )
        raise SettingError("trainer", None, accepted)
    return _loaded(folder, "folder", which, "cpu" if device is None else device, trust)


def load_learner(
    run: str | Path, *, checkpoint: str = "best", device: str = "cpu", trust: bool = False
) -> MetaLearner:
    """The trained learner of a run on tasks: ``load_learner("outputs/…").adapt((x, y))``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` or ``"last"``.
        device: where to put it.
        trust: see `load`, whose ``learner`` this is.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
    """
    folder = existing_run(str(run), "run")
    saved = saved_config(folder, trust=trust)
    if "task" not in saved:
        raise SettingError("run", str(run), "a run of trainer=meta is needed; see load_ensemble")
    trainer = trainer_of(folder, saved, checkpoint, device, deferred=True)
    return cast("MetaLearner", trainer.learner)  # type: ignore[attr-defined]


def load_ensemble(
    run: str | Path, *, checkpoint: str = "best", device: str = "cpu", trust: bool = False
) -> Predictor:
    """The trained ensemble of a run's folder: ``load_ensemble("outputs/…")(x)``, ``[M, B, C]``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` (each member at its best) or ``"last"``.
        device: where to put it.
        trust: see `load`, whose ``predictive()`` this is, or whose ``module`` for one on tasks.

    Raises:
        SettingError, DataError: no run of an ensemble there, or one that cannot be read.
    """
    trainer = _loaded(run, "run", checkpoint, device, trust)
    if hasattr(trainer, "predictive"):
        return cast("Predictor", trainer.predictive().eval())
    if not isinstance(trainer.module, Ensemble):
        raise SettingError("run", str(run), "a run of members is needed; see load_learner")
    return trainer.module.eval()


def load_module(
    run: str | Path, *, checkpoint: str = "best", device: str = "cpu", trust: bool = False
) -> nn.Module:
    """The trained network of a run of trainer=per_sample: ``load_module("outputs/…")(x)``.

    Of a run of trainer=hyper, which keeps no network, one is trained anew with what was learnt.

    Args:
        run: the folder.
        checkpoint: ``"best"`` or ``"last"``.
        device: where to put it.
        trust: see `load`, whose ``module`` this is.

    Raises:
        SettingError, DataError: no such run there, or one that cannot be read.
    """
    trainer = _loaded(run, "run", checkpoint, device, trust)
    if hasattr(trainer, "learner") or hasattr(trainer, "predictive"):
        accepted = "a run of trainer=per_sample is needed; see load_learner, load_ensemble"
        raise SettingError("run", str(run), accepted)
    if hasattr(trainer, "train_network"):
        return cast("nn.Module", trainer.train_network())
    return trainer.module.eval()


def trainer_of(
    folder: Path,
    saved: DictConfig,
    checkpoint: str,
    device: str | torch.device,
    *,
    deferred: bool = False,
    ranks: Ranks | None = None,
) -> Trainer:
    """The trainer of a run's configuration at a checkpoint, without a folder to write to.

    With ``deferred`` the data of tasks are looked for when one is drawn. Several ``ranks`` are
    refused where they differ in code, settings or data.
    """
    saved.device = str(device)
    shapes = saved.get("shapes") or {}
    known = {name: shapes.get(name) for name in ("training_classes", "training_units")}
    kept = kept_weights(saved)
    ranks = ranks or OneRank()
    check_same_settings(ranks, saved)
    trainer = build(kept, folder=None, deferred=deferred, trained_on=known, ranks=ranks)
    check_same_data(ranks, trainer)
    trainer.resume(_checkpoint(folder, checkpoint))
    return trainer


@contextmanager
def run_to_look_into(config: DictConfig) -> Iterator[tuple[Path, DictConfig]]:
    """A block that has the folder ``config.run`` to itself, and the settings it was trained with.

    Of several ranks the first has it for all.

    Raises:
        SettingError, DataError: no run there, one that cannot be read, or one that another process
            is at.
        StorageError: the block could not write to the folder.
    """
    folder = existing_run(config.run, "run")
    saved = saved_config(folder, trust=config.trust)
    first = ranks_of_command().rank == 0
    with claimed(folder, "run") if first else nullcontext(), determinism(saved), writing_to(folder):
        yield folder, saved


def _loaded(
    run: str | Path, setting: str, checkpoint: str, device: str | torch.device, trust: bool
) -> Trainer:
    folder = existing_run(str(run), setting)
    saved = saved_config(folder, trust=trust)
    return trainer_of(folder, saved, checkpoint, device, deferred=True)


def _checkpoint(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / f"{name}.pt"
