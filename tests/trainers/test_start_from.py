"""Trainers start from weights of runs of their own kind, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.errors import DataError
from metalearn.trainers import PerSampleTrainer
from tests.support.small_data import KINDS, blobs, network, trainer


def per_sample(**settings: Any) -> Any:
    return PerSampleTrainer(
        network(settings.pop("seed", 0)), blobs(), steps=2, batch_size=16, progress=False
    )


def moved(made: Any) -> None:
    """Other weights than any that are drawn."""
    with torch.no_grad():
        for index, value in enumerate(made.module.parameters()):
            value.add_(0.01 * index + 0.1)


@pytest.mark.parametrize("kind", [*KINDS.values(), None], ids=[*KINDS, "per_sample"])
def test_a_trainer_takes_the_weights_of_one_of_its_kind(kind: Any, tmp_path: Path) -> None:
    def make(**given: Any) -> Any:
        return per_sample(**given) if kind is None else trainer(kind, **given)

    first, second = make(), make()
    moved(first)
    torch.save(first.module.state_dict(), tmp_path / "state.pt")
    found = second.start_from(tmp_path / "state.pt")
    for mine, other in zip(first.module.parameters(), second.module.parameters()):
        assert torch.equal(mine, other)
    assert second.step == 0 and not second.optimizer.state
    assert second.start_from(found) is found
    with pytest.raises(DataError, match="the network has no other"):
        torch.save({**first.module.state_dict(), "other": torch.ones(1)}, tmp_path / "state.pt")
        second.start_from(tmp_path / "state.pt")
