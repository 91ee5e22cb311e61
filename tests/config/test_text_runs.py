"""Runs on texts: every learner, gone on with, scored, loaded without their table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from metalearn.cli import load_learner
from metalearn.data import Tokenizer
from metalearn.trainers import LEARNERS
from tests.support.commands import TINY, Outcome, call
from tests.support.text_sets import topics, write_table

Run = Callable[..., Outcome]
FEW = [
    *(s for s in TINY if not s.startswith(("task", "model", "maml"))),
    *("task=texts", "task.root=topics.csv", "task.way=2", "task.query=1", "task.length=10"),
    *("task.vocabulary=500", "hydra.run.dir=out"),
]
AVERAGED = ["model=averaged_embeddings", "model.width=8", "model.hidden=[8]"]
OF_CLASSES = sorted(set(LEARNERS) - {"cnp"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "topics.csv", topics(18, 4))

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def learner_settings(name: str) -> list[str]:
    features = getattr(LEARNERS[name].make, "needs", "logits") == "features"
    settings = ["model.head=false", "learner.features=8"] if features else []
    return [f"learner={name}", *settings]


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_learner_of_classes_takes_texts(run: Run, name: str) -> None:
    outcome = run("train", *FEW, *AVERAGED, *learner_settings(name))
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("out/results.json").read_text())


@pytest.mark.parametrize("model", ["text_transformer", "gru", "lstm"])
def test_a_run_goes_on_is_scored_and_loaded_without_its_table(run: Run, model: str) -> None:
    outcome = run("train", *FEW, f"model={model}", "maml.inner_lr=0.1", "maml.frozen=embedding*")
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load("out/config.yaml")
    assert config.shapes.vocabulary == 500 and config.shapes.input_shape == [10]
    outcome = run("train", "resume=out", "trainer.steps=6")
    assert outcome.code == 0, outcome.err
    outcome = run("evaluate", "run=out", "tasks=6", "confusions=3")
    assert outcome.code == 0, outcome.err
    assert "scores" in json.loads(Path("out/evaluation-test.json").read_text())
    Path("topics.csv").unlink()
    learner = load_learner("out")
    tokens = Tokenizer("words", 500, 10).encode(["topic0word1 common3", "topic1word2"])
    adapted = learner.adapt((tokens, torch.tensor([0, 1])))
    assert adapted(tokens).shape == (2, 2)
    outcome = run("evaluate", "run=out", "tasks=6")
    assert outcome.code == 2 and "topics.csv" in outcome.err


def test_members_features_and_adapters_of_texts(run: Run) -> None:
    for number, settings in enumerate(
        (
            ["trainer.members=2", "model=averaged_embeddings"],
            ["model=averaged_embeddings", "model.frozen_features=true", "learner=anil"],
            ["model=text_transformer", "model.lora.rank=2", "maml.method=first_order"],
            ["model=averaged_embeddings", "task.least.shot=1", "task.shot=2"],
        )
    ):
        outcome = run("train", *FEW, *settings, f"hydra.run.dir=out{number}")
        assert outcome.code == 0, outcome.err


def test_topics_are_learnt(run: Run) -> None:
    """A class is the words that its texts share: a few steps find out which of a text count."""
    kept = [s for s in FEW if not s.startswith(("trainer.steps", "trainer.meta", "test_tasks"))]
    steps = ["trainer.steps=60", "trainer.meta_batch=8", "test_tasks=100"]
    wide = ["model=averaged_embeddings", "model.width=32", "model.hidden=[]", "model.head=false"]
    own = ["learner=protonet", "learner.features=32"]
    outcome = run("train", *kept, *steps, *wide, *own)
    assert outcome.code == 0, outcome.err
    accuracy = json.loads(Path("out/results.json").read_text())["test"]["transductive"]["accuracy"]
    assert accuracy[-1]["mean"] > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=conv4"], "model='Conv4': a network of texts is needed: averaged_embeddings"),
        (["model=mlp"], "model='MLP': a network of texts is needed"),
        (["model=averaged_embeddings", "task=glyphs"], "model='AveragedEmbeddings': texts are ne"),
        (["model=gru", "task.tokens=letters"], "task.tokens='letters': words, bytes or a function"),
        (["model=gru", "task.tokens={a: 1}"], "task.tokens={'a': 1}: a text or a function"),
        (["model=gru", "task.root=nowhere"], "task.root='nowhere': nothing is there"),
        (["model=gru", "task.label=intent"], "row 1 has no intent; its columns are label, text"),
        (["model=gru", "model.embedding=0"], "model.embedding=0: a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(run: Run, settings: list[str], message: str) -> None:
    glyphs = "task=glyphs" in settings
    outcome = run("train", *(s for s in FEW if not (glyphs and s.startswith("task"))), *settings)
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert not Path("out").exists()


def test_a_run_is_scored_on_texts_from_elsewhere(run: Run) -> None:
    """Tokens of another table are made as those of the run, and all of its classes are tested."""
    outcome = run("train", *FEW, "model=gru", "test_tasks=0")
    assert outcome.code == 0, outcome.err
    write_table(Path("others.csv"), topics(3, 2, seed=1))
    elsewhere = ["run=out", "tasks=4", "test_task=texts", "test_task.root=others.csv"]
    outcome = run("evaluate", *elsewhere, "confusions=2")
    assert outcome.code == 0, outcome.err
    (path,) = Path("out").glob("evaluation-test-texts*.json")
    task = json.loads(path.read_text())["task"]
    assert (task["length"], task["vocabulary"], task["test_fraction"]) == (10, 500, 1)
    outcome = run("evaluate", *elsewhere, "test_task.vocabulary=400")
    assert outcome.code == 2 and "test_task" in outcome.err, outcome.err
    outcome = run("evaluate", "run=out", "episodes=folder")
    assert outcome.code == 2 and "no square pictures" in outcome.err
