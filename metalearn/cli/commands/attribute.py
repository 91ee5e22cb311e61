"""``metalearn attribute``: which training examples made a run's network what it is."""

from __future__ import annotations

import time

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.cli.attributed_files import write_learner, write_run
from metalearn.cli.attributed_findings import findings_of_run
from metalearn.cli.attributed_learners import findings_of_learner
from metalearn.cli.attributed_settings import check, is_of_a_learner
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import given_settings
from metalearn.cli.loading import run_to_look_into
from metalearn.cli.processes import ranks_of_command
from metalearn.ranks import refuse_division

__all__ = ["attribute_run", "check"]


@one_sentence_errors()
def attribute_run(config: DictConfig) -> None:
    """Score examples by every method that is asked for; prints a table, writes files and a page.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the run's folder cannot be written to.
    """
    check(config, given_settings(HydraConfig.get()))
    with run_to_look_into(config) as (folder, saved):
        started = time.monotonic()
        ranks = ranks_of_command()
        if is_of_a_learner(saved):
            if ranks.count > 1:
                refuse_division("the attribution of a meta-learner", ranks.share)
            learnt, scores, step = findings_of_learner(folder, config, saved)
            write_learner(folder, config, step, learnt, scores, time.monotonic() - started)
            return
        whole = findings_of_run(folder, config, saved)
        if whole is not None:
            findings, found, step = whole
            write_run(folder, config, step, findings, found, time.monotonic() - started)
