"""Episodes from files, and confusions, by ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from metalearn import load
from metalearn.tasks import read_episodes
from metalearn.trainers.meta.episode_scores import score_episodes
from tests.saved_runs.double import copy_of
from tests.support.commands import ROOT, Outcome

Run = Callable[..., Outcome]
SAVED = ROOT / "tests" / "saved_runs"
PICTURES = SAVED / "v1" / "meta_pictures-finished"  # two classes, MAML
PROTONET = SAVED / "v2" / "meta_protonet-finished"
MEMBERS = SAVED / "v2" / "meta_protonet_members-finished"


@pytest.fixture(autouse=True)
def _without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metalearn.cli.commands.evaluate.provenance", dict)  # asks git: slow


def write_episode(folder: Path, trainer: Any, index: int, *, in_order: bool = False) -> None:
    """A task of the test split as pictures in folders, whose names may keep its labels' order."""
    tasks, names = trainer.tasks.sample("test", [index]), trainer.tasks.class_names("test", index)
    if in_order:
        names = tuple(f"{label}{name}" for label, name in enumerate(names))
    for part, (pictures, labels) in zip(("support", "query"), tasks):
        write_pictures(folder / part, pictures[0], labels[0], names)


def write_pictures(folder: Path, pictures: Tensor, labels: Tensor, names: tuple[str, ...]) -> None:
    for number, (picture, label) in enumerate(zip(pictures, labels.tolist())):
        place = folder / names[label]
        place.mkdir(parents=True, exist_ok=True)
        pixels = (picture[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.mark.parametrize("saved", [PICTURES, PROTONET, MEMBERS], ids=lambda p: p.name)
def test_episodes_from_files_score_as_the_tasks_that_they_are(
    saved: Path, run: Run, tmp_path: Path
) -> None:
    folder = copy_of(saved, tmp_path / "run")
    trainer: Any = load(folder)
    for index in range(3):
        write_episode(tmp_path / "given" / f"e{index}", trainer, index, in_order=True)
    outcome = run("evaluate", f"run={folder}", "episodes=given")
    assert outcome.code == 0, outcome.err
    assert ", 3 episodes of given" in outcome.out
    found = json.loads((folder / "evaluation-episodes-given.json").read_text())
    drawn = trainer.tasks.sample("test", range(3))
    for name in ("transductive", "inductive"):
        wanted = trainer.learner.score(drawn, inductive=name == "inductive")
        each = [episode[name] for episode in found["episodes"]]
        losses = torch.tensor([one["loss"] for one in each])
        torch.testing.assert_close(losses, wanted.losses[:, -1].float(), rtol=1e-4, atol=1e-5)
        accuracies = torch.tensor([one["accuracy"] for one in each])
        torch.testing.assert_close(accuracies, wanted.accuracies[:, -1].float())
        last = found["scores"][name]["accuracy"][-1]
        assert last["mean"] == pytest.approx(float(accuracies.mean()))
        for episode, accuracy in zip(each, accuracies.tolist()):
            right = [file.startswith(f"{c}/") for file, c in episode["predictions"].items()]
            assert sum(right) / len(right) == pytest.approx(accuracy)
    assert [(e["name"], e["way"], e["support"]) for e in found["episodes"]] == [
        (f"e{index}", 2, 2) for index in range(3)
    ]


def test_episodes_of_any_way_and_unequal_sizes(tmp_path: Path) -> None:
    folder = copy_of(PROTONET, tmp_path / "run")
    trainer: Any = load(folder)
    digits = trainer.tasks.data.images.float() / 255
    labels = trainer.tasks.data.labels
    for name, (ways, shots) in {"a": ((0, 3, 5), 2), "b": ((1, 2), 1), "c": ((4, 6), 1)}.items():
        for part, few in (("support", slice(0, shots)), ("query", slice(3, 6))):
            rows = torch.cat([(labels == c).nonzero().flatten()[few] for c in ways])
            names = tuple(f"digit{c}" for c in range(10))
            write_pictures(tmp_path / "e" / name / part, digits[rows], labels[rows], names)
    (tmp_path / "e" / "b" / "query" / "digit1" / "0.png").unlink()
    (tmp_path / "e" / "a" / "support" / "digit0" / "1.png").unlink()
    episodes = read_episodes(tmp_path / "e", image_size=16)
    assert [(e.name, e.way, len(e.support[1]), len(e.query[1])) for e in episodes] == [
        ("a", 3, 5, 9), ("b", 2, 2, 5), ("c", 2, 2, 6),
    ]  # fmt: skip
    for inductive in (False, True):
        several = score_episodes(trainer.learner, episodes, inductive=inductive)
        for row, episode in enumerate(episodes):
            alone = trainer.learner.score(episode.task, inductive=inductive)
            torch.testing.assert_close(several.scores.losses[row], alone.losses[0])
            assert torch.equal(several.predictions[row], alone.predictions[0, -1])
        report = several.report().as_json()  # calibration and AURC over the queries of each
        assert 0 <= report["aurc"]["mean"] <= 1 and report["calibration"]["mean"] >= 0
    one = read_episodes(tmp_path / "e" / "a", image_size=16)
    assert [e.name for e in one] == ["a"]


def test_omniglot_strokes_are_read_as_in_training(tmp_path: Path) -> None:
    """Black on white, made smaller by area: the very pixels of the data set."""
    from metalearn.data.pictures import area_average

    random = torch.Generator().manual_seed(0)
    ink = (torch.rand(2, 105, 105, generator=random) < 0.2).to(torch.uint8) * 255
    for part in ("support", "query"):
        for number, pixels in enumerate(ink):
            place = tmp_path / "e" / "one" / part / f"c{number}"
            place.mkdir(parents=True)
            Image.fromarray((255 - pixels).numpy()).convert("1").save(place / "0.png")
    (episode,) = read_episodes(tmp_path / "e", image_size=28, invert=True, area=True)
    wanted = torch.from_numpy(area_average(ink.numpy(), 28)).float() / 255
    assert torch.equal(episode.support[0][:, 0], wanted)


def _empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _extra_class(folder: Path) -> None:
    place = folder / "e0" / "query" / "zebra"
    place.mkdir()
    next((folder / "e0" / "query").rglob("*.png")).rename(place / "0.png")


def _third_class(folder: Path) -> None:
    for part in ("support", "query"):
        place = folder / "e0" / part / "zebra"
        place.mkdir()
        Image.new("L", (16, 16)).save(place / "0.png")


def _damaged(folder: Path) -> None:
    next((folder / "e0" / "support").rglob("*.png")).write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_empty, "given: no episodes are there, folders with support and query"),
        (lambda folder: (folder / "e1").mkdir(), "e1: an episode needs the folders support and"),
        (_extra_class, "no support pictures of the class zebra of queries"),
        (_third_class, "episodes='e0': it has 3 classes, and the model was built for 2"),
        (_damaged, "1 file cannot be read as a picture"),
    ],
)
def test_episodes_that_cannot_be_scored(
    spoil: Callable[[Path], Any], sentence: str, run: Run, tmp_path: Path
) -> None:
    folder = copy_of(PICTURES, tmp_path / "run")
    write_episode(tmp_path / "given" / "e0", load(folder), 0)
    spoil(tmp_path / "given")
    outcome = run("evaluate", f"run={folder}", "episodes=given")
    assert outcome.code == 2 and sentence in outcome.err, outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("given", [False, True])
def test_confusions_are_a_table_and_a_picture(given: bool, run: Run, tmp_path: Path) -> None:
    folder = copy_of(PROTONET, tmp_path / "run")
    trainer: Any = load(folder)
    what = ["tasks=12"]
    if given:
        what = ["episodes=given"]
        for index in range(12):
            write_episode(tmp_path / "given" / f"e{index:02d}", trainer, index)
    outcome = run("evaluate", f"run={folder}", *what, "confusions=3")
    assert outcome.code == 0, outcome.err
    stem = "episodes-given" if given else "test"
    found = json.loads((folder / f"evaluation-{stem}.json").read_text())["confusions"]
    drawn = trainer.tasks.sample("test", range(12))
    scores = trainer.learner.score(drawn, inductive=True)
    wrong = scores.predictions[:, -1] != drawn.query[1]
    assert found["errors"] == int(wrong.sum()) > 0 and found["queries"] == wrong.numel()
    counts: dict[tuple[str, str], int] = {}
    for task, query in wrong.nonzero().tolist():
        names = trainer.tasks.class_names("test", task)
        true, taken = drawn.query[1][task, query], scores.predictions[task, -1, query]
        pair = names[int(true)], names[int(taken)]
        counts[pair] = counts.get(pair, 0) + 1
    frequent = {(c["true"], c["predicted"]): c["count"] for c in found["most_frequent"]}
    assert sorted(frequent.values()) == sorted(counts.values())[-3:]
    assert frequent.items() <= counts.items()
    assert all(c["count"] <= c["chances"] for c in found["most_frequent"])
    with Image.open(folder / f"confusions-{stem}.png") as picture:
        assert picture.width > 300
    true, taken = next(iter(frequent))
    assert f"{true}  taken for {taken}: {frequent[true, taken]} of" in outcome.out
