"""The training of a run as ranks of a machine could share it, timed.

Axes: R ranks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import open_dict

from metalearn.benchmarks.rank_layouts import LayoutTiming, time_layouts
from metalearn.benchmarks.shared_steps import QUIET, refused, step_times
from metalearn.cli.building import build
from metalearn.cli.networks import kept_weights
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import existing_run
from metalearn.errors import SettingError
from metalearn.ranks import OneRank, Ranks, joined
from metalearn.trainers import Trainer

__all__ = ["take_part", "time_run"]

_LEAST = 3
_MOST, _SECONDS = 24, 20.0
"""Steps of a turn, and seconds after which the first turn of all ends, at three at least."""


def time_run(run: str, *, trust: bool, rounds: int) -> LayoutTiming:
    """What a step of a run's training takes by one process, and by R ranks of this machine.

    The run's folder stays as it is.

    Args:
        run: the folder.
        trust: whether its ``config.yaml`` may name any importable object to be called.
        rounds: at least 1.

    Raises:
        SettingError, DataError: no run there, one that cannot be read, or that ranks cannot share.
    """
    folder = existing_run(run, "run").resolve()
    trainer = _trainer(folder, trust, OneRank())
    steps = int(step_times(trainer, OneRank(), most=_MOST, seconds=_SECONDS)["steps"])
    code = f"from {__name__} import take_part; take_part({str(folder)!r}, {trust!r}, {steps})"
    return time_layouts(code, rounds=rounds)


def take_part(folder: str, trust: bool, steps: int) -> None:
    """Train as one of the ranks that the environment tells of; the first prints what it found.

    What cannot be shared by so many is what it found, too.
    """
    with _without_warnings(), joined() as ranks:
        try:
            found: Mapping[str, Any] = step_times(
                _trainer(Path(folder), trust, ranks), ranks, most=steps
            )
        except SettingError as error:
            found = refused(error)
        if ranks.rank == 0:
            print(json.dumps(found))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A block that does not warn of what is chosen for so few steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _trainer(folder: Path, trust: bool, ranks: Ranks) -> Trainer:
    """As `scripts/train.py` makes it, new."""
    saved = saved_config(folder, trust=trust)
    asked = saved.trainer.get("steps")
    if isinstance(asked, int) and asked < _LEAST:
        accepted = f"a run of at least {_LEAST} steps is needed, so that one can be timed"
        raise SettingError("trainer.steps", asked, accepted)
    with open_dict(saved.trainer):
        saved.trainer.update(QUIET)
    return build(kept_weights(saved), folder=None, ranks=ranks)
