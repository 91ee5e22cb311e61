"""What a run's folder holds, as objects: for scripts and notebooks."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from metalearn.cli.building import AnyTrainer, build
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import existing_run
from metalearn.errors import SettingError
from metalearn.models import Ensemble, Predictor
from metalearn.trainers import EnsembleTrainer, MetaLearner, MetaTrainer, PerSampleTrainer

__all__ = ["load_ensemble", "load_learner", "load_module", "trainer_of"]


def load_learner(
    run: str | Path, *, checkpoint: str = "best", device: str = "cpu", trust: bool = False
) -> MetaLearner:
    """The trained learner of a run's folder: ``load_learner("outputs/…").adapt((x, y))``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` or ``"last"``.
        device: where to put it.
        trust: whether its ``config.yaml`` may name any importable object to be called.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
    """
    folder = existing_run(str(run), "run")
    saved = saved_config(folder, trust=trust)
    if "task" not in saved:
        raise SettingError("run", str(run), "a run of trainer=meta is needed; see load_ensemble")
    trainer = trainer_of(folder, saved, checkpoint, device)
    assert isinstance(trainer, MetaTrainer)
    return trainer.learner


def load_ensemble(
    run: str | Path, *, checkpoint: str = "best", device: str = "cpu", trust: bool = False
) -> Predictor:
    """The trained ensemble of a run's folder: ``load_ensemble("outputs/…")(x)``, ``[M, B, C]``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` (each member at its best) or ``"last"``.
        device: where to put it.
        trust: whether its ``config.yaml`` may name any importable object to be called.

    Raises:
        SettingError, DataError: no run of an ensemble there, or one that cannot be read.
    """
    folder = existing_run(str(run), "run")
    trainer = trainer_of(folder, saved_config(folder, trust=trust), checkpoint, device)
    if isinstance(trainer, EnsembleTrainer):
        return trainer.predictive().eval()
    if not isinstance(trainer.module, Ensemble):
        raise SettingError("run", str(run), "a run of members is needed; see load_learner")
    return trainer.module.eval()


def load_module(
    run: str | Path, *, checkpoint: str = "best", device: str = "cpu", trust: bool = False
) -> nn.Module:
    """The trained network of a run of trainer=per_sample: ``load_module("outputs/…")(x)``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` or ``"last"``.
        device: where to put it.
        trust: whether its ``config.yaml`` may name any importable object to be called.

    Raises:
        SettingError, DataError: no such run there, or one that cannot be read.
    """
    folder = existing_run(str(run), "run")
    trainer = trainer_of(folder, saved_config(folder, trust=trust), checkpoint, device)
    if not isinstance(trainer, PerSampleTrainer):
        accepted = "a run of trainer=per_sample is needed; see load_learner, load_ensemble"
        raise SettingError("run", str(run), accepted)
    return trainer.module.eval()


def trainer_of(folder: Path, saved: DictConfig, checkpoint: str, device: str) -> AnyTrainer:
    """The trainer of a run at a checkpoint, without a folder to write to."""
    saved.device = device
    trainer = build(saved, folder=None)
    trainer.resume(folder / "checkpoints" / f"{checkpoint}.pt")
    return trainer
