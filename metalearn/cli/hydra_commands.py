"""A command whose settings Hydra composes, from the YAMLs to the exit code."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from metalearn.cli.command_table import Command
from metalearn.cli.config_files import config_folder
from metalearn.cli.error_messages import JobError, check_options, one_sentence_errors
from metalearn.cli.help_settings import settings_help
from metalearn.cli.launching.jobs import run_job
from metalearn.cli.launching.signals import keep_signals
from metalearn.cli.own_settings import add_settings, typed_words
from metalearn.cli.shown_progress import shown_progress, wanted
from metalearn.cli.standard_streams import tolerant_streams
from metalearn.cli.usage import typed

__all__ = ["run", "run_command"]

_SHOWING = {"--cfg", "-c"}
"""Options by which Hydra prints what it has composed."""


def run_command(command: Command) -> None:
    """Compose the command's configuration from ``sys.argv`` and call it."""

    def task(config: DictConfig) -> Any:
        sys.argv[:] = typed_words()  # Hydra has read it, and the record of a run is yet to be
        with shown_progress(wanted(config)):
            return run_job(command.function, config)

    folder, name = str(config_folder()), command.config
    add_settings()
    main = hydra.main(version_base="1.3", config_path=folder, config_name=name)(task)
    if name == "train" and _SHOWING & {word.partition("=")[0] for word in sys.argv[1:]}:
        from metalearn.cli.own_classes import shown_without_others  # with torch

        main = shown_without_others()(main)
    run(main, name)


def run(main: Callable[[], Any], config_name: str | None = None) -> None:
    """Call a Hydra main; whatever a user can mend becomes one sentence and exit code 2.

    Args:
        main: decorated by ``hydra.main``.
        config_name: of its YAML, which errors quote from; None takes the name of the script.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing
    register: Callable[..., None] = OmegaConf.register_new_resolver
    # OmegaConf 2.4 deprecates that name for this one, which meant something else before.
    if "replace" in inspect.signature(OmegaConf.register_resolver).parameters:
        register = OmegaConf.register_resolver
    register("run_folder", _run_folder, use_cache=True, replace=True)
    register("usage", typed, replace=True)
    register("settings_help", settings_help, replace=True)
    with tolerant_streams(), one_sentence_errors(config_name or Path(sys.argv[0]).stem):
        check_options(sys.argv[1:])
        _call(main)


def _call(main: Callable[[], Any]) -> None:
    """With the signal in the exit code, where jobs of a sweep have been stopped by one."""
    try:
        main()
    except Exception as error:
        received = keep_signals()
        if received is None:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = "; ".join(dict.fromkeys((lines[0], lines[-1])))  # between them is a traceback
        raise JobError(f"the sweep was stopped ({why})", 128 + received) from error
    else:
        received = keep_signals()
        if received is not None:
            raise JobError("the sweep was stopped as it ended", 128 + received)
    finally:
        keep_signals()


def _run_folder(*arguments: Any) -> str:
    from metalearn.cli.run_folders import run_folder  # with torch, which --help does without

    return run_folder(*arguments)
