"""What came of a training: ``results.json``, and what a sweep is told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.given_settings import plain_value
from metalearn.cli.launching.launches import is_of_sweep
from metalearn.cli.member_sweep import sweep_of
from metalearn.cli.run_config import used_part
from metalearn.errors import SettingError
from metalearn.files import read_regular
from metalearn.tracking import write_json
from metalearn.trainers import FitResult, Trainer
from metalearn.trainers.loop.unvalidated import Unvalidated
from metalearn.trainers.report import Report

__all__ = ["check_direction", "flat_config", "has_results", "write_results"]

_DIRECTIONS: dict[str, tuple[Any, Any]] = {
    "direction": ("minimize", "maximize"),  # of Optuna
    "ax_config.experiment.minimize": (True, False),  # of Ax
    "optim.maximize": (False, True),  # of Nevergrad
}
"""By the setting in which a sweeper is told: what a small score asks for, and what a large one."""
_UNTOLD = ("device", "test_tasks", "tracker", "trainer.progress")
"""Settings that change nothing of what is compared."""
_NO_SETTINGS = ("resume", "trust", "version")
_RESULTS = "results.json"
_LARGEST = 2**26  # bytes of them


def check_direction(trainer: Trainer) -> None:
    """Refuse to have a sweeper look for the worst score of validation in place of the best.

    Raises:
        SettingError: it would.
    """
    if not is_of_sweep():
        return
    sweeper = HydraConfig.get().sweeper
    evaluator = trainer.loop.evaluator
    for name, wanted in _DIRECTIONS.items():
        given = OmegaConf.select(sweeper, name)
        if given is None:
            continue
        if evaluator.monitor == Unvalidated.monitor:
            accepted = "a training that is validated is needed: a sweeper goes by that score"
            raise SettingError("hydra.sweeper", _name_of(sweeper), accepted)
        needed, shown = wanted[evaluator.larger_is_better], getattr(given, "name", given)
        if shown != needed:
            text = str(needed).lower()
            accepted = f"{text} is needed: a run gives one number, its best {evaluator.monitor}"
            raise SettingError(f"hydra.sweeper.{name}", plain_value(shown), accepted)


def _name_of(sweeper: Any) -> str:
    """The choice that a sweeper comes from, else what it builds."""
    target = str(sweeper.get("_target_") or "").rpartition(".")[2]
    return str(HydraConfig.get().runtime.choices.get("hydra/sweeper") or target)


def write_results(
    folder: Path,
    config: DictConfig,
    result: FitResult,
    reports: Mapping[str, Report],
    trainer: Trainer,
) -> None:
    """The rows of the hyper-parameters tab and, when all else is done, ``results.json``."""
    numbers = {f"best/{result.best_name.rsplit('/', 1)[-1]}": result.best_value}
    for report in reports.values():
        numbers |= report.headline()
    trainer.tracker.hparams(_told(folder, config), numbers)
    rows, sweep = trainer.member_settings(), sweep_of(trainer, reports)
    for report in reports.values():
        if rows:
            trainer.tracker.member_hparams(rows, report.member_headlines())
    write_json(
        folder / _RESULTS,
        {
            "steps": result.step,
            "reason": result.reason,
            "best_step": result.best_step,
            result.best_name: result.best_value,
            "seconds": result.seconds,
            "cpu_seconds": result.cpu_seconds,
            **({"checkpoint": "best"} if reports else {}),
            "test": {name: report.as_json() for name, report in reports.items()},
            "headline": numbers,
            **({"endings": trainer.endings} if rows else {}),
            **({"sweep": sweep} if sweep is not None else {}),
            **trainer.results(),
        },
        make_folder=False,
    )


def has_results(folder: Path, step: int) -> bool:
    """Whether the run has been tested after this step."""
    try:
        results = json.loads(read_regular(folder / _RESULTS, _LARGEST))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(results, dict) and results.get("steps") == step


def _told(folder: Path, config: DictConfig) -> dict[str, bool | int | float | str]:
    """The seed, and what was given when the run began or now, with the values that it has.

    All other settings are defaults, or the experiment's: the same in all runs that are compared.
    """
    flat = flat_config(config)
    found: dict[str, bool | int | float | str] = {"seed": flat["seed"]} if "seed" in flat else {}
    for text in (*_first_command(folder), *HydraConfig.get().overrides.task):
        name, _, value = str(text).lstrip("+~").partition("=")
        name = name.partition("@")[0]
        inside = any(known == name or known.startswith(f"{name}.") for known in flat)
        if (inside or name == "experiment") and value and name not in _UNTOLD:
            found[name] = flat.get(name, value)
    return found


def _first_command(folder: Path) -> list[str]:
    """Words of the command with which a run began."""
    try:
        told = json.loads(read_regular(folder / "provenance.json", _LARGEST))
        words = told["command"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [w for w in words if isinstance(w, str)] if isinstance(words, list) else []


def flat_config(config: DictConfig) -> dict[str, bool | int | float | str]:
    """Settings as dotted names and plain values, for the comparison of runs."""

    def walk(prefix: str, value: Any) -> dict[str, bool | int | float | str]:
        if isinstance(value, dict):
            parts = [walk(f"{prefix}{k}.", v) for k, v in value.items()]
            return {k: v for part in parts for k, v in part.items()}
        name = prefix[:-1]
        return {name: value if isinstance(value, bool | int | float | str) else str(value)}

    values = OmegaConf.to_container(used_part(config), resolve=True)
    return {k: v for k, v in walk("", values).items() if k not in _NO_SETTINGS}
