"""``metalearn audit``: whether the step of a private run is as private as its account says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metalearn.auditing import (
    StepAudit,
    TrainingAudit,
    audit_private_step,
    audit_private_training,
)
from metalearn.cli.building import build
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.loading import run_to_look_into, trainer_of
from metalearn.cli.networks import initial_weights
from metalearn.cli.run_config import config_to_read
from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import check_seed
from metalearn.tracking import provenance, write_json
from metalearn.tracking.progress import Progress

__all__ = ["audit", "check"]

_FILE = "audit.json"
_PRIVATE = ".PrivateTrainer"


@one_sentence_errors()
def audit(config: DictConfig) -> None:
    """Audit a run's step; prints a table and writes JSON.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the run's folder cannot be written to.
    """
    check(config, given_settings(HydraConfig.get()))
    with run_to_look_into(config) as (folder, saved):
        _audit(folder, config, saved)


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, and runs that are not private.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    saved = config_to_read(config)
    check_whole("trials", plain_value(config.trials), 8)
    check_number("confidence", plain_value(config.confidence), above=0, below=1)
    check_seed(plain_value(config.seed))
    check_whole("models", plain_value(config.models), 0)
    if config.models and (config.models < 16 or config.models % 2):
        accepted = "0 or an even number of at least 16 is needed"
        raise SettingError("models", config.models, accepted)
    if config.models_at_once is not None:
        check_whole("models_at_once", plain_value(config.models_at_once), 1)
        if not config.models:
            raise SettingError("models_at_once", config.models_at_once, "models=200 needs it")
    if not str(saved.trainer.get("_target_")).endswith(_PRIVATE):
        raise SettingError("run", config.run, "a run of trainer=private is needed")


def _audit(folder: Path, config: DictConfig, saved: DictConfig) -> None:
    trainer: Any = trainer_of(folder, saved, config.checkpoint, config.device)
    started = time.monotonic()
    how = {"confidence": config.confidence, "seed": config.seed}
    step = audit_private_step(trainer, trials=config.trials, **how)
    training = _training(config, saved, how) if config.models else None
    rest = {
        "settings": OmegaConf.to_container(config, resolve=True), "step": trainer.step,
        "seconds": time.monotonic() - started, "provenance": provenance(),
    }  # fmt: skip
    found = {"one_step": step.as_json(), "training": training and training.as_json()}
    write_json(folder / _FILE, {**found, **rest})
    print(f"{folder}, step {trainer.step}\n")
    print(_table(step, training))
    print(_verdict("a step", step))
    canary = f"{step.canary_norm:.3g}, C is {step.max_norm:g}"
    print(f"the norm of the canary's gradient in a step is {canary}")
    if training is not None:
        print(_verdict("the training", training))
    print(f"written: {folder / _FILE}")


def _training(config: DictConfig, saved: DictConfig, how: Any) -> TrainingAudit:
    """Of as many networks as are asked for, trained as the run was."""
    fresh: Any = build(saved, folder=None, start=initial_weights(saved))
    given = {"models": config.models, "models_at_once": config.models_at_once}
    stacks = 2 * -(-(config.models // 2) // (config.models_at_once or config.models))
    with Progress(fresh.settings.steps * stacks, enabled=None) as bar:
        return audit_private_training(fresh, **given, **how, tell=lambda step: bar.update(1))


def _table(step: StepAudit, training: TrainingAudit | None) -> str:
    """Markdown: a row for each way of looking."""
    lines = [
        "| seen | ε that is claimed | at least | of any mechanism |",
        "|---|---:|---:|---:|",
    ]
    rows = [(name, step.claimed, bound) for name, bound in step.bounds.items()]
    if training is not None:
        rows.append(("the trained weights", training.claimed, training.bound))
    for name, epsilon, bound in rows:
        gaussian = f"{bound.gaussian_epsilon:.3g}" if name in step.bounds else ""
        lines.append(f"| {name} | {epsilon:.3g} | {gaussian} | {bound.epsilon:.3g} |")
    return "\n".join(lines)


def _verdict(what: str, found: StepAudit | TrainingAudit) -> str:
    of = f"ε {found.claimed:.3g} of {what} at δ {found.delta:g}"
    if found.refuted:
        return f"REFUTED: {of} is claimed, at least {found.lower_bound:.3g} is spent"
    return f"nothing speaks against {of} (confidence {found.confidence:g})"
