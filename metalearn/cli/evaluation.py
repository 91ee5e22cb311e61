"""What ``scripts/evaluate.py`` does: score a trained run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from metalearn.addressing import check_split
from metalearn.cli.complaints import one_sentence_errors
from metalearn.cli.determinism import determinism
from metalearn.cli.folders import existing_run, saved_config
from metalearn.cli.loading import trainer_of
from metalearn.cli.reports import plain_report, report_table
from metalearn.errors import SettingError, check_whole
from metalearn.tracking import provenance, write_json
from metalearn.trainers import MetaTrainer

__all__ = ["evaluate"]


@one_sentence_errors()
def evaluate(config: DictConfig) -> None:
    """Score a trained run on tasks of a split; prints a table and writes JSON into the run.

    Raises:
        SettingError, DataError: what a user can mend.
    """
    folder = existing_run(config.run, "run")
    saved = saved_config(folder, trust=config.trust)
    if config.checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", config.checkpoint, "best or last is needed")
    with determinism(saved):
        if "task" in saved:
            _evaluate_tasks(folder, config, saved)
        else:
            _evaluate_samples(folder, config, saved)


def _evaluate_samples(folder: Path, config: DictConfig, saved: DictConfig) -> None:
    """Score a run on labelled samples."""
    given = {f"task.{key}": value for key, value in config.task.items()}
    for name, value in {**given, "eval_steps": config.eval_steps}.items():
        if value is not None:
            raise SettingError(name, value, "the run has no tasks, so null is needed")
    if config.get("ood") is not None:
        if saved.trainer["_target_"].endswith("PerSampleTrainer"):
            raise SettingError("ood", "a data set", "only a run of an ensemble takes one")
        with open_dict(saved):
            saved.ood = config.ood
    trainer = trainer_of(folder, saved, config.checkpoint, config.device)
    check_split(config.split)
    assert not isinstance(trainer, MetaTrainer)
    report = trainer.test(split=config.split)
    name = f"evaluation-{config.split}" + ("" if config.checkpoint == "best" else "-last")
    path = folder / f"{name}.json"
    write_json(
        path,
        {
            "checkpoint": config.checkpoint,
            "step": trainer.step,
            "scores": plain_report(report),
            "provenance": provenance(),
        },
    )
    print(f"{folder}, step {trainer.step}")
    print(report_table({config.split: report}))
    print(f"written: {path}")


def _evaluate_tasks(folder: Path, config: DictConfig, saved: DictConfig) -> None:
    """Score a run on few-shot tasks."""
    if config.get("ood") is not None:
        raise SettingError("ood", config.ood._target_, "the run has tasks, so null is needed")
    trained_way = saved.task.get("way")
    changes = {str(key): value for key, value in config.task.items() if value is not None}
    with open_dict(saved):
        for key, value in changes.items():
            if key not in saved.task:
                raise SettingError(f"task.{key}", value, "the run's task has no such setting")
            saved.task[key] = value
        if config.eval_steps is not None:
            saved.maml.eval_steps = config.eval_steps
    if config.task.way not in (None, trained_way):
        raise SettingError("task.way", config.task.way, f"the model was built for {trained_way}")
    check_whole("tasks", config.tasks, 1)
    trainer = trainer_of(folder, saved, config.checkpoint, config.device)
    assert isinstance(trainer, MetaTrainer)
    started = time.monotonic()
    reports = {
        name: trainer.test(config.tasks, split=config.split, inductive=name == "inductive")
        for name in ("transductive", "inductive")
    }
    path = folder / f"{_evaluation_name(config, changes)}.json"
    write_json(
        path,
        {
            "checkpoint": config.checkpoint,
            "step": trainer.step,
            "split": config.split,
            "task": OmegaConf.to_container(saved.task, resolve=True),
            "eval_steps": saved.maml.eval_steps,
            "seconds": time.monotonic() - started,
            "scores": {name: plain_report(report) for name, report in reports.items()},
            "provenance": provenance(),
        },
    )
    print(f"{folder}, step {trainer.step}, {config.tasks} {config.split} tasks")
    print(report_table(reports))
    print(f"written: {path}")


def _evaluation_name(config: DictConfig, changes: Mapping[str, Any]) -> str:
    """A name that tells what differs from the run, so that no evaluation replaces another."""
    parts = ["evaluation", config.split]
    if config.checkpoint != "best":
        parts.append(config.checkpoint)
    if config.eval_steps is not None:
        parts.append(f"steps{config.eval_steps}")
    parts += [f"{key}{value}" for key, value in changes.items() if key != "root"]
    return "-".join(parts)
