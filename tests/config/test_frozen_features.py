"""``model.frozen_features`` and ``model.lora``: bodies that stay, and what learns on or in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.cli import load
from metalearn.cli.frozen_features import with_features
from metalearn.data import feature_table as tables
from metalearn.models import Ensemble, LowRank
from metalearn.tasks import MixtureTasks, glyph_tasks
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.commands import Outcome, call

Run = Callable[..., Outcome]
CADENCE = ["trainer.steps=2", "trainer.progress=false", "test_tasks=0", "hydra.run.dir=run"]
LETTERS = [
    "task=glyphs", "task.image_size=16", "task.way=3", "trainer.meta_batch=2",
    "trainer.validation_tasks=2", "model=conv4", "model.filters=4", *CADENCE,
]  # fmt: skip
FROZEN = ["model.frozen_features=true", "maml.norm=group"]
SAMPLES = ["data=digits", "model=mlp", "model.hidden=[6]", "model.frozen_features=true", *CADENCE]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    glyph_tasks(image_size=16)  # drawn into the common cache
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def shapes(trainer: Any) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in trainer.module.named_parameters()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([*FROZEN], [[3, 4], [3]]),
        (["model.frozen_features=[5]", "maml.norm=group"], [[5, 4], [5], [3, 5], [3]]),
        (
            ["learner=protonet", "learner.features=7", "learner.norm=layer", FROZEN[0]],
            [[7, 4], [7]],
        ),
        ([*FROZEN, "trainer.members=2"], [[2, 3, 4], [2, 3]]),
    ],
    ids=["linear", "mlp", "features", "members"],
)
def test_what_learns_is_a_head_on_features(
    given: list[str], expected: list[list[int]], run: Run
) -> None:
    outcome = run("train", *LETTERS, *given)
    assert outcome.code == 0, outcome.err
    trainer = load("run")
    assert sorted(shapes(trainer).values()) == sorted(expected)
    assert isinstance(trainer.module, Ensemble) == ("trainer.members=2" in given)
    assert run("train", "resume=run", "trainer.steps=3").code == 0


@pytest.mark.parametrize("turned", ["task.rotate_train=true", "task.rotate_eval=true", "seed=0"])
def test_tasks_are_those_of_the_pictures_described(turned: str, run: Run) -> None:
    assert run("train", *LETTERS, *FROZEN, turned, "test_tasks=0").code == 0
    tasks: Any = load("run").tasks  # type: ignore[attr-defined]
    settings = {turned.partition("=")[0].removeprefix("task."): True} if "task" in turned else {}
    plain = glyph_tasks(way=3, query=2, image_size=16, **settings)
    for split in ("train", "test"):
        found, pictures = (t.sample(split, [0, 3]) for t in (tasks, plain))
        assert torch.equal(found.class_ids, pictures.class_ids)
        for mine, other in zip((found.support, found.query), (pictures.support, pictures.query)):
            wanted: Tensor = tasks.features.describe(other[0].flatten(0, 1))
            torch.testing.assert_close(mine[0].flatten(0, 1), wanted)
            assert torch.equal(mine[1], other[1])


def test_a_mixture_is_one_of_sets_of_features(run: Run) -> None:
    sets = {n: glyph_tasks(way=3, image_size=16, seed=s) for n, s in (("a", 0), ("b", 1))}
    mixture, body = MixtureTasks(sets, seed=3), nn.Flatten()
    found = with_features(mixture, body, torch.device("cpu"))
    assert found.input_shape == (256,) and mixture.input_shape == (1, 16, 16)
    mine, other = (tasks.sample("test", range(4)) for tasks in (found, mixture))
    torch.testing.assert_close(mine.query[0], other.query[0].flatten(2))
    assert torch.equal(mine.class_ids, other.class_ids)


def test_features_are_computed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    compute = tables._computed

    def counted(*given: Any) -> Tensor:
        computed.append(1)
        return compute(*given)

    monkeypatch.setattr(tables, "_computed", counted)
    assert run("train", *LETTERS, *FROZEN).code == 0
    assert run("evaluate", "run=run", "tasks=2", "confusions=2").code == 0
    assert len(computed) == 1
    assert run("train", *LETTERS[:-1], *FROZEN, "seed=1", "hydra.run.dir=other").code == 0
    assert len(computed) == 2  # of other weights
    for path in Path("cache/features").glob("*.pt"):
        path.write_bytes(b"damaged")
    assert run("evaluate", "run=run", "tasks=2").code == 0
    assert len(computed) == 3


def test_the_body_has_the_weights_to_start_from(run: Run) -> None:
    group = "maml.norm=group"
    assert run("train", *LETTERS[:-1], group, "hydra.run.dir=first").code == 0
    given = ["init_from=first", "init_skip=[head.*]", "task.way=4"]
    assert run("train", *LETTERS, *FROZEN, *given).code == 0
    body = load("run").tasks.features.network.state_dict()  # type: ignore[attr-defined]
    first = load("first").module.state_dict()
    assert body.keys() == {name for name in first if not name.startswith("head")}
    assert all(torch.equal(value, first[name]) for name, value in body.items())


@pytest.mark.parametrize("trainer", ["per_sample", "ensemble", "batch_ensemble"])
def test_samples_of_features(trainer: str, run: Run) -> None:
    members = [] if trainer == "per_sample" else ["trainer.members=2"]
    outcome = run("train", f"trainer={trainer}", *SAMPLES, *members)
    assert outcome.code == 0, outcome.err
    assert load("run").data.input_shape == (6,)  # type: ignore[attr-defined]


# --- adapters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        [*LETTERS, "maml.norm=group", "model.lora.layers=blocks.*"],
        [*LETTERS, "learner=protonet"],
        [*LETTERS, "maml.norm=group", "trainer.members=2"],
        ["trainer=ensemble", "trainer.members=2", "data=digits", "model=mlp", *CADENCE],
    ],
    ids=["maml", "protonet", "members", "ensemble"],
)
def test_adapters_learn_and_the_rest_stays(given: list[str], run: Run) -> None:
    outcome = run("train", *given, "model.lora.rank=2", "model.lora.alpha=4")
    assert outcome.code == 0, outcome.err
    module = load("run").module
    assert any(isinstance(layer, LowRank) and layer.scale == 2 for layer in module.modules())
    names = [name for name, value in module.named_parameters() if not value.requires_grad]
    assert names and all(".down." not in name and ".up." not in name for name in names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["model.frozen_features=true"], "model.frozen_features=True: blocks.0.1 takes statistics"),
        ([*FROZEN, "task.augment.shift=0.1"], "task.augment='ranges above 0': no ranges are"),
        (["model.frozen_features=5"], "model.frozen_features=5: true, false or widths"),
        (["model.frozen_features=[0]"], "model.frozen_features=0: a whole number of at least 1"),
        (["model.lora.rank=0"], "model.lora.rank=0: a whole number of at least 1"),
        (["model.lora.rank=text"], "model.lora.rank='text'"),
        (["model.lora.alpha=2"], "model.lora.alpha=2: model.lora.rank is needed for it"),
        (["model.lora.rank=2", "model.lora.layers=no"], "model.lora.layers='no': a pattern"),
        (["model.lora.rank=2", FROZEN[0]], "model.lora.rank=2: null is needed"),
    ],
)
def test_what_cannot_work(given: list[str], said: str, run: Run) -> None:
    outcome = run("train", *LETTERS, *given)
    assert outcome.code == 2
    assert said in outcome.err
    assert not Path("run").exists()


def test_tasks_without_pictures(run: Run) -> None:
    given = ["task=sinusoid", "model=mlp", "model.frozen_features=true"]
    outcome = run("train", *given, "hydra.run.dir=run")
    assert outcome.code == 2
    assert "model.frozen_features=True: false is needed: these are no pictures" in outcome.err
