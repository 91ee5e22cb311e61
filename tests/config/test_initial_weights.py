"""``init_from``: trainings that start from weights of other runs, and of files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.checkpoint import load_checkpoint
from metalearn.cli import load
from metalearn.models import MLP, read_weights
from metalearn.trainers import Trainer
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.commands import TINY, Outcome, call

Run = Callable[..., Outcome]

CADENCE = [
    "trainer.steps=2",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.progress=false",
    "test_tasks=0",
]
SAMPLES = ["model=mlp", "model.hidden=[8]", "data=digits", *CADENCE]
LETTERS = ["task=glyphs", "task.image_size=16", "trainer.meta_batch=2", *CADENCE]
LETTERS += ["trainer.validation_tasks=2", "model=conv4", "model.filters=4"]
KINDS = {
    "meta": [*TINY, "test_tasks=0"],
    "meta_members": [*TINY, "test_tasks=0", "trainer.members=2"],
    "mamlpp": [*TINY, "test_tasks=0", "learner=mamlpp"],
    "cavia": [*TINY, "test_tasks=0", "learner=cavia", "learner.context_size=2"],
    "ensemble": ["trainer=ensemble", "trainer.members=2", *SAMPLES],
    "batch_ensemble": ["trainer=batch_ensemble", "trainer.members=2", *SAMPLES],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)  # asks git, which is slow

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Weights as trainings begin."""
    found: list[dict[str, Tensor]] = []
    fit = Trainer.fit

    def noted(self: Trainer) -> Any:
        state = self.module.state_dict()
        beside = self.loop.beside
        if beside is not None:
            state |= {f"learnt.{name}": value for name, value in beside.state_dict().items()}
        found.append({name: value.clone() for name, value in state.items()})
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", noted)
    return found


def saved(path: Path) -> dict[str, Tensor]:
    state = load_checkpoint(path)
    return {**state["module"], **{f"learnt.{n}": v for n, v in state.get("learnt", {}).items()}}


def assert_equal(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_starts_where_one_of_its_kind_was_best(
    kind: str, run: Run, starts: list[dict[str, Tensor]]
) -> None:
    assert run("train", *KINDS[kind], "hydra.run.dir=first").code == 0
    outcome = run("train", *KINDS[kind], "seed=5", "init_from=first", "hydra.run.dir=second")
    assert outcome.code == 0, outcome.err
    assert_equal(starts[-1], saved(Path("first/checkpoints/best.pt")))
    origin = json.loads(Path("second/provenance.json").read_text())["init_from"]
    weights = read_weights("first")
    assert origin == {"path": str(weights.path), "sha256": weights.sha256, "skip": []}
    shutil.rmtree("first")  # what goes on or is loaded needs it no more
    assert load("second").step <= 4
    if kind == "mamlpp":
        assert run("train", "resume=second", "trainer.steps=6").code == 0


@pytest.mark.parametrize("kind", ["meta_members", "batch_ensemble"])
def test_every_member_starts_from_the_state_of_a_network(
    kind: str, run: Run, starts: list[dict[str, Tensor]]
) -> None:
    inputs, outputs = ((1,), 1) if kind == "meta_members" else ((1, 8, 8), 10)
    network = MLP(inputs, outputs, hidden=(8,), seed=9)
    torch.save(network.state_dict(), "state.pt")
    head = list(network.state_dict())[-1].rpartition(".")[0]
    skip = [f"init_skip=[{head}.*]"] if kind == "meta_members" else []
    outcome = run("train", *KINDS[kind], "init_from=state.pt", *skip, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    found = list(starts[-1].values())
    for name, wanted in network.state_dict().items():
        if not (skip and name.startswith(head)):
            rows = [v for v in found if v.shape[-wanted.dim() :] == wanted.shape]
            assert any(bool((v == wanted).all()) for v in rows), name


def test_a_network_that_a_learner_wraps(run: Run, starts: list[dict[str, Tensor]]) -> None:
    assert run("train", *KINDS["meta"], "hydra.run.dir=plain").code == 0
    outcome = run("train", *KINDS["cavia"], "init_from=plain", "hydra.run.dir=wrapped")
    assert outcome.code == 0, outcome.err
    best = saved(Path("plain/checkpoints/best.pt"))
    start = starts[-1]
    assert_equal(
        {f"network.{name}": value for name, value in best.items()},
        {name: value for name, value in start.items() if name.startswith("network.")},
    )


def test_a_new_head(run: Run, starts: list[dict[str, Tensor]]) -> None:
    assert run("train", *LETTERS, "hydra.run.dir=five").code == 0
    other = [*LETTERS, "task.way=3", "init_from=five", "hydra.run.dir=three"]
    outcome = run("train", *other)
    assert outcome.code == 2
    assert "head.weight is [5, 4], not [3, 4]" in outcome.err and "init_skip" in outcome.err
    assert not Path("three").exists()
    assert run("train", *other, "init_skip=[head.*]").code == 0
    best = saved(Path("five/checkpoints/best.pt"))
    for name, value in starts[-1].items():
        assert name.startswith("head") or torch.equal(value, best[name])


def test_what_was_learnt_beside_the_weights(run: Run, starts: list[dict[str, Tensor]]) -> None:
    assert run("train", *KINDS["mamlpp"], "hydra.run.dir=rates").code == 0
    refused = run("train", *KINDS["meta"], "init_from=rates", "hydra.run.dir=plain")
    assert refused.code == 2 and "the network has no learnt.lr" in refused.err
    taken = ["init_from=rates", "init_skip=[learnt.*]", "hydra.run.dir=plain"]
    assert run("train", *KINDS["meta"], *taken).code == 0
    assert run("train", *KINDS["mamlpp"], "init_from=plain", "hydra.run.dir=again").code == 0
    best = saved(Path("plain/checkpoints/best.pt"))
    assert_equal({n: v for n, v in starts[-1].items() if not n.startswith("learnt")}, best)


def test_members_that_would_be_twins(run: Run) -> None:
    assert run("train", *KINDS["meta"], "hydra.run.dir=one").code == 0
    outcome = run("train", *KINDS["meta_members"], "init_from=one", "hydra.run.dir=two")
    assert outcome.code == 2
    assert "init_from='one/checkpoints/best.pt': members see the same tasks" in outcome.err


def test_a_run_stopped_before_its_first_checkpoint_starts_so_again(
    run: Run, starts: list[dict[str, Tensor]]
) -> None:
    assert run("train", *KINDS["meta"], "hydra.run.dir=first").code == 0
    assert run("train", *KINDS["meta"], "init_from=first", "hydra.run.dir=run").code == 0
    shutil.rmtree("run/checkpoints")
    Path("run/results.json").unlink()
    assert run("train", "resume=run").code == 0
    assert_equal(starts[-1], starts[-2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("init_from=nowhere", "init_from='nowhere': there is nothing"),
        ("init_from=5", "init_from=5: the folder of a run, or a file of weights"),
        ("init_from=[a,b]", "init_from=['a', 'b']: the folder of a run"),
        ("init_from=.", "init_from='.': this folder has no checkpoints/best.pt"),
        ("init_skip=[head.*]", "init_skip=['head.*']: init_from is needed for it"),
        ("init_from=state.pt init_skip=head.*", "init_skip='head.*': a list of patterns"),
        ("init_from=state.pt init_skip=[haed.*]", "init_skip='haed.*': a pattern that matches"),
        ("init_from=text.pt", "text.pt: this file holds no weights"),
    ],
)
def test_what_cannot_be_the_start(given: str, said: str, run: Run) -> None:
    torch.save(MLP((1,), 1, hidden=(8,)).state_dict(), "state.pt")
    Path("text.pt").write_text("weights")
    outcome = run("train", *KINDS["meta"], *given.split(), "hydra.run.dir=run")
    assert outcome.code == 2
    assert said in outcome.err
    assert not Path("run").exists()
