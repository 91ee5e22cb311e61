"""The command line with ensembles made of one network: trained, evaluated, taken away."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metalearn.cli import load_ensemble
from metalearn.data import digits_data
from tests.support.builders import without_ensemble_figures
from tests.support.commands import Outcome, call

Run = Callable[..., Outcome]

SMALL = [
    "trainer.members=3",
    "trainer.steps=6",
    "trainer.batch_size=16",
    "trainer.eval_every=3",
    "trainer.checkpoint_every=3",
    "trainer.engine=loop",
    "trainer.progress=false",
    "model.hidden=[8]",
]
OUTSIDE = ["ood=glyphs", "ood.image_size=8", "ood.renderings=6", "ood.classes=6"]
METHODS = {
    "mc_dropout": [],
    "batch_ensemble": ["trainer.factors=normal"],
    "snapshot": [],
    "swag": ["trainer.start=0.0", "trainer.every=2", "trainer.rank=2"],
}
methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    without_ensemble_figures(monkeypatch)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@methods
def test_a_run_is_evaluated_as_it_ended(method: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    given = [f"trainer={method}", *SMALL, *METHODS[method], *OUTSIDE]
    outcome = run("train", *given, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert "test: 450 samples, 3 members" in outcome.out
    results = json.loads((folder / "results.json").read_text())["test"]["test"]
    assert len(results["members"]) == len(results["by_size"]) == 3
    outcome = run("evaluate", f"run={folder}", *OUTSIDE)
    assert outcome.code == 0, outcome.err
    assert json.loads((folder / "evaluation-test.json").read_text())["scores"] == results
    x, y = digits_data(seed=0).part("test")
    logits = load_ensemble(folder)(x)
    assert logits.shape == (3, 450, 10)
    hits = (logits.softmax(-1).mean(0).argmax(-1) == y).double().mean()
    assert float(hits) == pytest.approx(results["ensemble"]["accuracy"])


@methods
def test_a_seed_for_the_one_network(method: str, run: Run, tmp_path: Path) -> None:
    given = [f"trainer={method}", *SMALL, *METHODS[method], "test_tasks=0"]
    outcome = run("train", *given, "trainer.seeds=[5]", f"hydra.run.dir={tmp_path / 'one'}")
    assert outcome.code == 0, outcome.err
    outcome = run("train", *given, "trainer.seeds=[5,6,7]", "hydra.run.dir=other")
    assert outcome.code == 2 and "1 are needed, one for each network" in outcome.err
    one, same = (load_ensemble(tmp_path / "one")(torch.ones(2, 1, 8, 8)) for _ in range(2))
    assert torch.equal(one, same)


def test_a_network_without_dropout_is_one_sentence(run: Run) -> None:
    outcome = run("train", "trainer=mc_dropout", "model=mlp", *SMALL, "hydra.run.dir=out")
    assert outcome.code == 2 and "dropout layers is needed" in outcome.err
    assert not Path("out").exists()
