"""What the scripts do: train a run, score a run, hand out its learner."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from metalearn.cli.building import build
from metalearn.cli.complaints import one_sentence_errors
from metalearn.cli.folders import (
    claimed,
    discard_if_empty,
    existing_run,
    resumed_config,
    run_folder,
    saved_config,
    write_config,
)
from metalearn.cli.reports import plain_report, report_table
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.tracking import RunTracker, provenance, write_json
from metalearn.trainers import FitResult, MetaLearner, MetaTrainer, TestReport

__all__ = ["evaluate", "load_learner", "run", "train"]

_BANDS = [
    f"{split}/{name}_{when}"
    for split in ("train", "validation")
    for name in ("accuracy", "loss")
    for when in ("before", "after")
]


def run(main: Callable[[], Any]) -> None:
    """Call a Hydra main; whatever a user can mend becomes one sentence and exit code 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing
    OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
    with one_sentence_errors():
        main()


@one_sentence_errors()  # inside Hydra's own handling, which would add lines
def train(config: DictConfig) -> None:
    """Train as the configuration says; leaves a folder that explains itself.

    Raises:
        SettingError, DataError: what a user can mend.
        NonFiniteError: training diverged.
        SystemExit: 128 + signal number, after an interrupted run has been saved.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    resuming = config.resume is not None
    with claimed(folder):
        if resuming:
            if folder.resolve() != Path(config.resume).resolve():
                raise SettingError(
                    "hydra.run.dir", str(folder), "a resumed run stays in its own folder"
                )
            config = resumed_config(config, list(HydraConfig.get().overrides.task))
        elif (folder / "checkpoints").exists() or (folder / "config.yaml").exists():
            raise SettingError(
                "hydra.run.dir",
                str(folder),
                f"this folder holds a run already; resume={folder} goes on with it",
            )
        try:
            _, trainer = build(config, folder=folder)
            if resuming:
                trainer.resume(folder / "checkpoints" / "last.pt")
        except (SettingError, DataError):
            discard_if_empty(folder)
            raise
        write_config(folder, config)
        suffix = f"-resumed-at-{trainer.step}" if resuming else ""
        write_json(folder / f"provenance{suffix}.json", provenance())
        trainer.tracker = RunTracker(
            folder, resume_step=trainer.step if resuming else None, bands=_BANDS
        )
        print(f"run folder: {folder}")
        _train_and_test(folder, config, trainer)


@one_sentence_errors()
def evaluate(config: DictConfig) -> None:
    """Score a trained run on tasks of a split; prints a table and writes JSON into the run.

    Raises:
        SettingError, DataError: what a user can mend.
    """
    folder = existing_run(config.run, "run")
    saved = saved_config(folder)
    trained_way = saved.task.get("way")
    changes = {str(key): value for key, value in config.task.items() if value is not None}
    with open_dict(saved):
        saved.device = config.device
        for key, value in changes.items():
            if key not in saved.task:
                raise SettingError(f"task.{key}", value, "the run's task has no such setting")
            saved.task[key] = value
        if config.eval_steps is not None:
            saved.maml.eval_steps = config.eval_steps
    if config.task.way not in (None, trained_way):
        raise SettingError("task.way", config.task.way, f"the model was built for {trained_way}")
    if config.checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", config.checkpoint, "best or last is needed")
    check_whole("tasks", config.tasks, 1)
    _, trainer = build(saved, folder=None)
    trainer.resume(folder / "checkpoints" / f"{config.checkpoint}.pt")
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


def load_learner(run: str | Path, *, checkpoint: str = "best", device: str = "cpu") -> MetaLearner:
    """The trained learner of a run's folder: ``load_learner("outputs/…").adapt((x, y))``.

    Args:
        run: the folder.
        checkpoint: ``"best"`` or ``"last"``.
        device: where to put it.

    Raises:
        SettingError, DataError: no run there, or one that cannot be read.
    """
    folder = existing_run(str(run), "run")
    saved = saved_config(folder)
    saved.device = device
    _, trainer = build(saved, folder=None)
    trainer.resume(folder / "checkpoints" / f"{checkpoint}.pt")
    return trainer.learner


def _train_and_test(folder: Path, config: DictConfig, trainer: MetaTrainer) -> None:
    try:
        result = trainer.fit()
        if result.signal is not None:
            print(f"stopped at step {result.step}; go on with resume={folder}")
            raise SystemExit(128 + result.signal)
        trainer.load_best()
        reports = _test_reports(trainer, config.test_tasks)
        _finish(folder, config, result, reports, trainer)
    finally:
        trainer.tracker.close()
    if reports:
        print(report_table(reports))
    print(f"dashboard: tensorboard --logdir {folder.parent}")


def _evaluation_name(config: DictConfig, changes: Mapping[str, Any]) -> str:
    """A name that tells what differs from the run, so that no evaluation replaces another."""
    parts = ["evaluation", config.split]
    if config.checkpoint != "best":
        parts.append(config.checkpoint)
    if config.eval_steps is not None:
        parts.append(f"steps{config.eval_steps}")
    parts += [f"{key}{value}" for key, value in changes.items() if key != "root"]
    return "-".join(parts)


def _test_reports(trainer: MetaTrainer, count: int) -> dict[str, TestReport]:
    return {"transductive": trainer.test(count)} if count else {}


def _finish(
    folder: Path,
    config: DictConfig,
    result: FitResult,
    reports: Mapping[str, TestReport],
    trainer: MetaTrainer,
) -> None:
    """results.json, and the row of the hyper-parameters tab."""
    write_json(
        folder / "results.json",
        {
            "steps": result.step,
            "reason": result.reason,
            "best_step": result.best_step,
            result.best_name: result.best_value,
            "seconds": result.seconds,
            "test": {name: plain_report(report) for name, report in reports.items()},
        },
    )
    numbers = {f"best/{result.best_name.rsplit('/', 1)[-1]}": result.best_value}
    for report in reports.values():
        values = report.losses if report.accuracies is None else report.accuracies
        numbers[f"test/{'loss' if report.accuracies is None else 'accuracy'}"] = float(
            values[0, -1]
        )
    trainer.tracker.hparams(_flat(config), numbers)


def _flat(config: DictConfig) -> dict[str, bool | int | float | str]:
    """Settings as dotted names and plain values, for the comparison of runs."""

    def walk(prefix: str, value: Any) -> dict[str, bool | int | float | str]:
        if isinstance(value, dict):
            parts = [walk(f"{prefix}{k}.", v) for k, v in value.items()]
            return {k: v for part in parts for k, v in part.items()}
        name = prefix[:-1]
        return {name: value if isinstance(value, bool | int | float | str) else str(value)}

    values = OmegaConf.to_container(config, resolve=True)
    return {k: v for k, v in walk("", values).items() if k != "resume"}
