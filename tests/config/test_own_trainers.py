"""Commands ask a trainer what it can do: one of a class that nobody has seen before is served."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metalearn import load
from metalearn.trainers import MetaTrainer, PerSampleTrainer
from metalearn.trainers.report import Report
from tests.support.commands import TINY, Outcome

Run = Callable[..., Outcome]
HERE = __name__
SHORT = [
    "model.hidden=[4]", "trainer.steps=2", "trainer.eval_every=2", "trainer.progress=false",
    "device=cpu",
]  # fmt: skip


class Verdict:
    """A report of another kind."""

    def as_json(self) -> dict[str, Any]:
        return {"verdict": "good"}

    def headline(self) -> dict[str, float]:
        return {"test/verdict": 1.0}

    def member_headlines(self) -> list[dict[str, float]]:
        return []

    def lines(self, name: str) -> list[str]:
        return [f"{name}: good"]


class SilentTrainer(PerSampleTrainer):
    """Takes no tests."""

    def reports(self, *args: Any, **settings: Any) -> Mapping[str, Report]:
        return {}


class JudgingTrainer(PerSampleTrainer):
    """Takes two tests of its own."""

    def reports(self, *args: Any, **settings: Any) -> Mapping[str, Report]:
        return {"first": Verdict(), "second": Verdict()}


class TaskTrainer(MetaTrainer):
    """On tasks, with a report of its own."""

    def reports(self, *args: Any, **settings: Any) -> Mapping[str, Report]:
        return {"verdict": Verdict()}


def trained(run: Run, *settings: str) -> dict[str, Any]:
    outcome = run("train", *settings, "hydra.run.dir=out")
    assert outcome.code == 0, outcome.err
    results: dict[str, Any] = json.loads(Path("out/results.json").read_text())
    return results | {"printed": outcome.out}


def test_a_trainer_without_tests(run: Run) -> None:
    results = trained(run, "trainer=per_sample", f"trainer._target_={HERE}.SilentTrainer", *SHORT)
    assert results["test"] == {} and results["steps"] == 2
    assert "endings" not in results and "checkpoint" not in results
    outcome = run("evaluate", "run=out", "trust=true")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "run='out': one whose trainer takes tests is needed" in outcome.err


def test_a_trainer_with_tests_of_its_own(run: Run) -> None:
    results = trained(run, "trainer=per_sample", f"trainer._target_={HERE}.JudgingTrainer", *SHORT)
    both = {"first": {"verdict": "good"}, "second": {"verdict": "good"}}
    assert results["test"] == both and "first: good\nsecond: good\n" in results["printed"]
    outcome = run("evaluate", "run=out", "trust=true")
    assert outcome.code == 0 and "first: good\nsecond: good\n" in outcome.out
    assert json.loads(Path("out/evaluation-test.json").read_text())["scores"] == both
    assert type(load("out", trust=True)).__name__ == "JudgingTrainer"


def test_a_trainer_on_tasks(run: Run, tmp_path: Path) -> None:
    target = f"trainer._target_={HERE}.TaskTrainer"
    results = trained(run, *TINY, target)
    assert results["test"] == {"verdict": {"verdict": "good"}}
    outcome = run("evaluate", "run=out", "trust=true", "tasks=3")
    assert outcome.code == 0 and "3 test tasks\nverdict: good\n" in outcome.out
    assert run("train", *TINY, target).code == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("sinusoid-20")
