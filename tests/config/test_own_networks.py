"""Networks of torchvision, and a user's own that take no outputs, from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision import models

from metalearn.cli import load
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.commands import Outcome, call

Run = Callable[..., Outcome]
LETTERS = [
    "task=glyphs", "task.image_size=32", "task.way=3", "task.query=1", "trainer.meta_batch=2",
    "trainer.steps=1", "trainer.validation_tasks=2", "trainer.progress=false", "test_tasks=0",
    "maml.norm=group",
]  # fmt: skip
SQUEEZED = ["model=torchvision", "model.name=squeezenet1_1"]
MINE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, stride=4), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(64 * width, 1000)

    def forward(self, x):
        return self.out(self.body(x))

class Projected(Net):
    def __init__(self, width=4):
        super().__init__(width)
        self.register_buffer("scales", torch.rand(1, 1, 32, 32))

    def forward(self, x):
        return super().forward(x * self.scales)

class Headless(Net):
    def __init__(self):
        super().__init__()
        self.out = nn.Identity()
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)
    (tmp_path / "mine_networks.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_networks", raising=False)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def test_a_network_with_weights_of_a_file_needs_the_file_once(run: Run) -> None:
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), "state.pt")
    given = [*LETTERS, *SQUEEZED, "model.weights=state.pt", "hydra.run.dir=run"]
    outcome = run("train", *given)
    assert outcome.code == 0, outcome.err
    module = load("run").module
    pictures = torch.rand(2, 1, 32, 32)
    before = module(pictures)
    Path("state.pt").unlink()
    torch.testing.assert_close(load("run").module(pictures), before)
    assert run("train", "resume=run", "trainer.steps=2").code == 0
    outcome = run("train", *given[:-1], "hydra.run.dir=other")
    assert outcome.code == 2 and "model.weights='state.pt': there is nothing" in outcome.err


@pytest.mark.parametrize("learner", ["maml", "protonet"])
def test_a_network_of_ones_own_has_a_new_last_layer(learner: str, run: Run) -> None:
    own = ["model._target_=mine_networks.Net", "~model.filters", "~model.downsample"]
    own += ["~model.halvings", "~model.pool", "~model.head", "~model.seed", "+model.width=2"]
    norm = [] if learner == "maml" else ["learner.features=5"]
    letters = LETTERS if learner == "maml" else LETTERS[:-1]
    outcome = run("train", *letters, *own, f"learner={learner}", *norm, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    module = load("run", trust=True).module
    assert module.get_submodule("out").weight.shape == (3 if learner == "maml" else 5, 128)


def test_members_have_heads_and_adapters_of_their_own_on_one_body(run: Run) -> None:
    own = ["model._target_=mine_networks.Projected", "~model.filters", "~model.downsample"]
    own += ["~model.halvings", "~model.pool", "~model.head", "~model.seed", "model.lora.rank=1"]
    data = ["trainer=ensemble", "trainer.members=2", "data=glyphs", "data.image_size=32"]
    few = ["trainer.steps=1", "trainer.progress=false", "test_tasks=0", "trainer.batch_size=8"]
    outcome = run("train", *data, "model=conv4", *own, *few, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    for name, value in load("run", trust=True).module.named_parameters():
        if name.endswith(("out.weight", "down.weight")):
            assert float((value[0] - value[1]).detach().abs().mean()) > 0.01, name
    body = load("run", trust=True).module
    fixed = [value for value in body.parameters() if not value.requires_grad]
    for value in (*fixed, *body.buffers()):
        assert torch.equal(value[0], value[1]) and bool(value.any())
    outcome = run("train", *data, "model=conv4", *own, *few, "trainer.members=1000000000000")
    assert outcome.code == 2 and "trainer.members=1000000000000: what fits" in outcome.err


def test_a_network_without_a_last_layer_is_refused(run: Run) -> None:
    own = ["model._target_=mine_networks.Headless", "~model.filters", "~model.downsample"]
    own += ["~model.halvings", "~model.pool", "~model.head", "~model.seed"]
    outcome = run("train", *LETTERS, *own, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "model._target_='mine_networks.Headless': outputs as an argument, or a" in outcome.err
