"""Configurations of runs of before say what was done then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from metalearn.cli.config_version import upgraded
from metalearn.trainers import BatchEnsembleTrainer, EnsembleTrainer, SWAGTrainer


@pytest.mark.parametrize("version", [{}, {"version": 2}])
@pytest.mark.parametrize("kind", [BatchEnsembleTrainer, SWAGTrainer, EnsembleTrainer])
def test_one_network_took_the_lower_end_of_a_range(kind: Any, version: dict[str, int]) -> None:
    values = {"lr": {"low": 0.1, "high": 1.0}, "weight_decay": 0.5, "dropout": None}
    config = OmegaConf.create(
        {
            "trainer": {"_target_": f"metalearn.trainers.{kind.__name__}", **values},
            "model": {"_target_": "metalearn.models.MLP"},
            "optimizer": {"_target_": "torch.optim.Adam"},
            "data": {"_target_": "metalearn.data.digits"},
            "seed": 0,
            "device": "cpu",
            "test_tasks": 1,
            **version,
        }
    )
    found = upgraded(config, Path("config.yaml")).trainer
    wanted = values if kind.networks != 1 else values | {"lr": 0.1}
    assert {name: found[name] for name in values} == wanted
