"""``metalearn diagnose``: gradients, Fisher matrix and curvature of a trained run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.diagnosis_text import diagnosis_lines
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.loading import run_to_look_into, trainer_of
from metalearn.cli.processes import ranks_of_command
from metalearn.cli.run_config import config_to_read
from metalearn.cli.same_run import check_same_data, check_same_settings
from metalearn.errors import SettingError, check_whole
from metalearn.near_names import check_known
from metalearn.tracking import RunTracker, provenance, write_json
from metalearn.trainers import Trainer
from metalearn.trainers.diagnostics import (
    PLACES,
    CurvatureSettings,
    Diagnosis,
    DiagnosisData,
    offline_diagnostics,
    record_diagnosis,
)
from metalearn.trainers.diagnostics.offline import diagnose_by_ranks

__all__ = ["check", "diagnose"]

_CURVATURE = tuple(field.name for field in fields(CurvatureSettings))


@one_sentence_errors()
def diagnose(config: DictConfig) -> None:
    """Compute what is asked for of a run; prints a table, writes JSON and TensorBoard records.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the run's folder cannot be written to.
    """
    check(config, given_settings(HydraConfig.get()))
    with run_to_look_into(config) as (folder, saved):
        _diagnose(folder, config, saved)


def _diagnose(folder: Path, config: DictConfig, saved: DictConfig) -> None:
    settings = CurvatureSettings(**{name: config[name] for name in _CURVATURE})
    # torch's own, at its first forward-mode derivative
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    ranks = ranks_of_command()
    check_same_settings(ranks, saved)
    trainer = trainer_of(folder, saved, config.checkpoint, config.device)
    check_same_data(ranks, trainer)
    started = time.monotonic()
    data = DiagnosisData(
        run=config.run,
        split=config.split,
        samples=config.samples,
        tasks=config.tasks,
        places=list(config.at),
        inner_steps=config.inner_steps,
        models_at_once=config.models_at_once,
    )
    sources = partial(trainer.diagnosis_sources, data)
    diagnosis = diagnose_by_ranks(sources, list(config.what), settings, ranks)
    if ranks.rank == 0:
        _write(folder, config, saved, trainer, diagnosis, time.monotonic() - started)


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the run or what is asked for has no use for.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    saved = config_to_read(config)
    check_whole("samples", plain_value(config.samples), 1)
    check_whole("tasks", plain_value(config.tasks), 1)
    if config.inner_steps is not None:
        check_whole("inner_steps", plain_value(config.inner_steps), 0)
    for setting, known in (("what", tuple(offline_diagnostics())), ("at", PLACES)):
        value = plain_value(config[setting])
        if not isinstance(value, list) or not value:
            raise SettingError(setting, value, f"a list of {', '.join(known)} is needed")
        for name in value:
            check_known(setting, name, known)
    CurvatureSettings(**{name: plain_value(config[name]) for name in _CURVATURE})
    unused = dict(_unused(config, meta="task" in saved, adapts="maml" in saved))
    for entry in given:
        if entry.name in unused and entry.value is not None:
            raise entry.refusal(unused[entry.name])


def _unused(config: DictConfig, *, meta: bool, adapts: bool) -> Iterator[tuple[str, str]]:
    """Settings without a use for this kind of run, or for what is asked of it."""
    if meta:
        yield "samples", "a run of trainer=meta takes tasks=..."
        if not adapts:
            for name in ("at", "inner_steps"):
                yield name, "the run's learner has no inner loop, so nothing is needed here"
        elif "adapted" not in config.at:
            yield "inner_steps", "at=[adapted] is needed for it"
    else:
        for name in ("tasks", "at", "inner_steps"):
            yield name, "the run has no tasks, so nothing is needed here"
    users: dict[str, list[str]] = {}  # of settings that are those of single quantities
    for name, kind in offline_diagnostics().items():
        for setting in kind.settings:
            users.setdefault(setting, []).append(name)
    for setting, names in users.items():
        if not set(names) & set(config.what):
            yield setting, f"what=[{' or '.join(names)}] is needed for it"


def _write(
    folder: Path,
    config: DictConfig,
    saved: DictConfig,
    trainer: Trainer,
    diagnosis: Diagnosis,
    seconds: float,
) -> None:
    name = f"diagnosis-{config.split}" + ("" if config.checkpoint == "best" else "-last")
    path = folder / f"{name}.json"
    findings = {
        place: {name: result.as_json() for name, result in found.items()}
        for place, found in diagnosis.findings.items()
    }
    write_json(
        path,
        {
            "checkpoint": config.checkpoint,
            "step": trainer.step,
            "settings": OmegaConf.to_container(config, resolve=True),
            "seconds": seconds,
            "findings": findings,
            "left_out": diagnosis.left_out,
            "provenance": provenance(),
        },
    )
    tracker = RunTracker(folder)
    try:
        record_diagnosis(tracker, trainer.step, config.split, diagnosis)
    finally:
        tracker.close()
    print(f"{folder}, step {trainer.step}, {config.split}\n")
    print("\n".join(diagnosis_lines(diagnosis, _batches(saved), str(path))))
    print(f"written: {path}, and to TensorBoard, in its section 'test and findings'")


def _batches(saved: DictConfig) -> dict[str, int]:
    """By what is looked at, of how many units a step of the training took the mean."""
    sizes = {"network": "batch_size", "members": "batch_size", "meta_gradients": "meta_batch"}
    found = {place: saved.trainer.get(name) for place, name in sizes.items()}
    return {place: size for place, size in found.items() if isinstance(size, int)}
