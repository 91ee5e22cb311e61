"""``metalearn export``: a trained run as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.exporting import ExportFormat, export
from metalearn.cli.given_settings import GivenSetting, given_settings, plain_value
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import existing_run
from metalearn.errors import DataError, SettingError
from metalearn.models import read_weights
from metalearn.models.weight_files import check_source
from metalearn.types import Batch

__all__ = ["check", "export_run"]

_NAMES = {"safetensors": "export.safetensors", "torch_export": "export.pt2"}


@one_sentence_errors()
def export_run(config: DictConfig) -> None:
    """Write a trained run as one file, and say where it is.

    Raises:
        SettingError, DataError: what a user can mend.
    """
    check(config, given_settings(HydraConfig.get()))
    how: dict[str, Any] = {key: config[key] for key in ("format", "checkpoint", "trust")}
    path = Path(config.path or existing_run(config.run, "run") / _NAMES[config.format])
    written = export(config.run, path, support=_support(config.support), **how)
    print(f"written: {written}")


def check(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Refuse settings that cannot work, or that the run has no use for.

    Raises:
        SettingError, DataError: the first of them, or a run that cannot be read.
    """
    folder = existing_run(config.run, "run")
    saved = saved_config(folder, trust=plain_value(config.trust))
    if config.format not in get_args(ExportFormat):
        accepted = f"one of {', '.join(get_args(ExportFormat))} is needed"
        raise SettingError("format", plain_value(config.format), accepted)
    if config.checkpoint not in ("best", "last"):
        raise SettingError("checkpoint", plain_value(config.checkpoint), "best or last is needed")
    for name in ("support", "path"):
        value = plain_value(config[name])
        if value is not None and not (isinstance(value, str) and value):
            raise SettingError(name, value, "the name of a file, or null, is needed")
    if config.support is not None and "task" not in saved:
        raise SettingError("support", config.support, "the run has no tasks, so null is needed")
    if config.support is not None:
        _support(config.support)
    elif config.format == "torch_export" and "task" in saved:
        accepted = "a support set is needed: torch_export holds a learner that is adapted"
        raise SettingError("support", None, accepted)


def _support(name: str | None) -> Batch | None:
    """Inputs and targets of a file."""
    if name is None:
        return None
    entries = read_weights(check_source("support", name)).entries
    if set(entries) != {"inputs", "targets"}:
        found = ", ".join(sorted(entries)[:8])
        raise DataError(f"{name}: a support set has inputs and targets, and this file has {found}")
    return entries["inputs"], entries["targets"]
