"""Runs of trainer=private_meta from the command line: results, resumption, and without the data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalearn import load
from metalearn.cli import load_learner
from tests.support.builders import assert_same
from tests.support.commands import Outcome

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
PRIVATE = [
    "trainer=private_meta",
    "trainer.epsilon=null",
    "trainer.noise_multiplier=1",
    "trainer.steps=4",
    "trainer.meta_batch=2",
    "trainer.progress=false",
]
WAVES = [
    *PRIVATE, "task=sinusoid", "model=mlp", "model.hidden=[4]", "trainer.users=30",
    "trainer.delta=0.001", "test_tasks=3", "hydra.run.dir=out",
]  # fmt: skip


def privacy_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "results.json").read_text())["privacy"]
    return found


def test_a_run_says_what_it_has_cost_and_goes_on(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run("train", *WAVES)
    assert outcome.code == 0, outcome.err
    assert "privacy: ε = " in outcome.out
    first = privacy_of(tmp_path / "out")
    assert (first["units"], first["examples"], first["steps"]) == ("users", 30, 4)
    again = run("train", "resume=out", "trainer.steps=6")
    assert again.code == 0, again.err
    second = privacy_of(tmp_path / "out")
    assert second["steps"] == 6
    assert second["epsilon"] > first["epsilon"]  # type: ignore[operator]
    scored = run("evaluate", "run=out", "tasks=3")
    assert scored.code == 0, scored.err


def test_a_learner_of_groups_comes_back_without_its_data(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for number in range(30):
        place = tmp_path / "pictures" / f"group{number % 3}" / f"class{number:02d}"
        place.mkdir(parents=True)
        for picture in range(4):
            pixels = random.integers(0, 255, (4, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{picture}.png")
    few = [
        *PRIVATE, "task=folder", "task.image_size=4", "task.channels=1", "task.root=pictures",
        "task.way=2", "task.within_group=true", "task.query=1", "learner=protonet",
        "model.filters=2", "model.head=false", "learner.features=2", "trainer.delta=0.01",
        "test_tasks=0", "hydra.run.dir=out",
    ]  # fmt: skip
    outcome = run("train", *few)
    assert outcome.code == 0, outcome.err
    units = privacy_of(tmp_path / "out")
    assert units["units"] == "groups" and units["batch_size"] == 2
    wanted = load(tmp_path / "out").learner.params  # type: ignore[attr-defined]
    shutil.move(tmp_path / "pictures", tmp_path / "taken_away")
    learner = load_learner(tmp_path / "out")
    assert_same(dict(learner.params), dict(wanted))
