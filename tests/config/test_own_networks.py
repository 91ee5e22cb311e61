"""Networks of torchvision, and a user's own that take no outputs, from the command line."""

from __future__ import annotations

import colorsys
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torchvision import models

from metalearn.cli import load
from metalearn.cli.own_settings import add_settings, added_settings, typed_words
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
from metalearn.models import Conv4

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, stride=4), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(64 * width, 1000)

    def forward(self, x):
        return self.out(self.body(x))

class Flat(nn.Sequential):
    def __init__(self, input_shape, outputs, width=5):
        size = torch.Size(input_shape).numel()
        super().__init__(nn.Flatten(), nn.Linear(size, width), nn.Linear(width, outputs))

class Wider(Conv4):
    def __init__(self, input_shape, outputs, filters=4, pool="flatten", factor=1):
        super().__init__(input_shape, outputs, filters=factor * filters, pool=pool)

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
    monkeypatch.setattr("sys.path", list(sys.path))  # to which the current folder is added
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


DIGITS = [
    "trainer.steps=1", "trainer.progress=false", "test_tasks=0", "trainer.batch_size=8",
    "model._target_=mine_networks.Flat", "hydra.run.dir=run",
]  # fmt: skip


@pytest.mark.parametrize("trainer", ["ensemble", "per_sample", "hyper", "private", "meta"])
@pytest.mark.parametrize("width", [None, 7])
def test_a_class_of_ones_own_needs_its_own_settings_alone(
    trainer: str, width: int | None, run: Run
) -> None:
    """No ``~model.hidden``, no ``+model.width``, and defaults are those of the class."""
    further = {
        "hyper": ["trainer.inner.steps=2"],
        "private": ["trainer.epsilon=null", "trainer.noise_multiplier=1", "trainer.delta=5e-4"],
        "meta": [*LETTERS, "task.image_size=8"],
    }.get(trainer, [])
    own = [text for text in DIGITS if trainer not in ("hyper", "meta") or "batch_size" not in text]
    chosen = [] if width is None else [f"model.width={width}"]
    outcome = run("train", f"trainer={trainer}", *further, *own, *chosen)
    assert outcome.code == 0, outcome.err
    module = load("run", trust=True).module
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    if trainer != "hyper":  # whose module is what is learnt
        assert layers[0].out_features == (width or 5)
    config = OmegaConf.load("run/config.yaml")
    assert set(config.model) - {"_target_", "frozen_features", "lora"} == (
        {"width"} if width else set()
    )


OPEN = """
import torch
from torch import nn
from metalearn.models import MLP

class Open(nn.Sequential):
    def __init__(self, **settings):
        size = torch.Size(settings["input_shape"]).numel()
        width = settings.get("width", 8)
        layers = nn.Linear(size, width), nn.Linear(width, settings["outputs"])
        super().__init__(nn.Flatten(), *layers)

class Half(nn.Sequential):
    def __init__(self, input_shape, outputs, **settings):
        width, size = settings.get("width", 8), torch.Size(input_shape).numel()
        super().__init__(nn.Flatten(), nn.Linear(size, width), nn.Linear(width, outputs))

class Handed(MLP):
    def __init__(self, *places, **settings):
        super().__init__(*places, **settings)

class Without(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
"""


@pytest.mark.parametrize(
    ("target", "given", "width"),
    [("Open", "width=4", 4), ("Half", "width=4", 4), ("Open", "", 8), ("Handed", "hidden=[4]", 4)],
)
def test_further_keywords_of_a_class_are_settings(
    run: Run, target: str, given: str, width: int
) -> None:
    Path("open_networks.py").write_text(OPEN)
    settings = [f"model._target_=open_networks.{target}", *([f"model.{given}"] if given else [])]
    outcome = run("train", "trainer=per_sample", *DIGITS, *settings)
    assert outcome.code == 0, outcome.err
    module = load("run", trust=True).module
    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert layers[0].out_features == width


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("Without", "width=4", "model.width=4: there is no such setting; none is taken"),
        ("Handed", "hiden=[4]", "model.hiden=[4]: there is no such setting; did you mean hidden?"),
        ("Handed", "hidden=wide", "model.hidden='wide': "),
    ],
)
def test_what_no_constructor_takes_is_refused(
    run: Run, target: str, given: str, message: str
) -> None:
    Path("open_networks.py").write_text(OPEN)
    settings = [f"model._target_=open_networks.{target}", f"model.{given}"]
    outcome = run("train", "trainer=per_sample", *DIGITS, *settings)
    assert outcome.code == 2 and message in outcome.err, outcome.err


@pytest.mark.parametrize("own", ["colorsys.py", "colorsys/__init__.py"])
def test_a_module_that_hides_ones_own_is_named_with_its_file(run: Run, own: str) -> None:
    Path(own).parent.mkdir(exist_ok=True)
    Path(own).write_text(MINE)
    outcome = run("train", "trainer=per_sample", *DIGITS, "model._target_=colorsys.Net")
    assert outcome.code == 2
    mine, found = Path(own.removesuffix("/__init__.py")).absolute(), colorsys.__file__
    assert f"colorsys, imported from {found} and not from {mine} (another name" in outcome.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model.widht=3"], "model.widht=3: there is no such setting; did you mean model.width?"),
        (["model.hidden=[3]"], "model.hidden=[3]: there is no such setting; known: width"),
        (["model._target_=mine_networks.Flatt"], "mine_networks has no Flatt; did you mean Flat?"),
        (["model._target_=nowhere_here.Net"], "there is no nowhere_here.py in "),
        (["model._target_=broken_here.Net"], "importing broken_here fails (SyntaxError: "),
    ],
)
def test_a_misspelt_setting_or_class_is_named(given: list[str], message: str, run: Run) -> None:
    Path("broken_here.py").write_text("def f(:")
    outcome = run("train", "trainer=per_sample", *DIGITS, *given)
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert not Path("run").exists()


def test_settings_of_a_chosen_group_stay_where_the_class_takes_them(run: Run) -> None:
    chosen = ["data=glyphs", "data.image_size=32", "trainer.batch_norm=groupnorm", "model=conv4"]
    own = ["model._target_=mine_networks.Wider", "model.factor=2", "model.filters=2"]
    outcome = run("train", "trainer=per_sample", *chosen, *own, *DIGITS[:-2], DIGITS[-1])
    assert outcome.code == 0, outcome.err
    config = OmegaConf.load("run/config.yaml").model
    assert (config.filters, config.factor, config.pool) == (2, 2, "mean")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["model._target_=a.B", "model.x=1"], ["model._target_=a.B", "++model.x=1"]),
        (["model.x=1", "trainer.x=1"], ["model.x=1", "trainer.x=1"]),
        (["model._target_=a.B", "+model.x=1"], ["model._target_=a.B", "+model.x=1"]),
        (["model._target_=a.B", "~model.x"], ["model._target_=a.B", "~model.x"]),
        (["model._target_=a.B", "models.x=1"], ["model._target_=a.B", "models.x=1"]),
        (
            ["-m", "model._target_=a.B", "model.x=1,2"],
            ["-m", "model._target_=a.B", "++model.x=1,2"],
        ),
    ],
)
def test_new_settings_of_a_named_class_are_added(
    arguments: list[str], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert added_settings(arguments) == wanted
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    add_settings()
    assert sys.argv == ["train.py", *wanted] and typed_words() == ["train.py", *arguments]


def test_what_is_shown_and_recorded_is_what_was_typed_and_is_trained(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = "metalearn.cli.commands.train.provenance"
    monkeypatch.setattr(record, lambda: {"command": list(sys.argv)})
    words = ["trainer=per_sample", *DIGITS, "model.width=7"]
    shown = run("train", *words, "--cfg", "job")
    assert shown.code == 0 and "width: 7" in shown.out and "hidden" not in shown.out
    assert not Path("run").exists()
    outcome = run("train", *words)
    assert outcome.code == 0, outcome.err
    recorded = json.loads(Path("run/provenance.json").read_text())["command"]
    assert recorded[-len(words) :] == words


def test_a_network_without_a_last_layer_is_refused(run: Run) -> None:
    own = ["model._target_=mine_networks.Headless", "~model.filters", "~model.downsample"]
    own += ["~model.halvings", "~model.pool", "~model.head", "~model.seed"]
    outcome = run("train", *LETTERS, *own, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "model._target_='mine_networks.Headless': outputs as an argument, or a" in outcome.err
