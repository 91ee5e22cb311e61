"""Which score chooses the best state, and what does where there are no validation tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.data import LabelledImages
from metalearn.errors import DataError, SettingError
from metalearn.models import Ensemble
from metalearn.tasks import FewShotTasks
from metalearn.trainers import MAML, MetaTrainer
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.builders import Recorder, assert_same, patterns
from tests.support.commands import TINY, Outcome
from tests.trainers.meta.test_inductive import ByHand

no_figures = pytest.mark.usefixtures("_no_figures")
SELECTIONS = ("transductive", "inductive")


@pytest.fixture
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of tiny runs."""
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda *given: None)


def without_validation() -> FewShotTasks:
    data = patterns()
    splits = {split: data.splits[split] for split in ("train", "test")}
    found = LabelledImages(data.images, data.labels, data.class_names, data.class_groups, splits)
    return FewShotTasks(found, way=3, shot=1, query=3)


def made(select_by: Any = "transductive", members: int = 0, **settings: Any) -> MetaTrainer:
    torch.manual_seed(0)
    tasks = settings.pop("tasks", None) or FewShotTasks(patterns(), way=3, shot=1, query=3)
    model: Any = ByHand("mean")
    if members:
        model = Ensemble.from_modules([ByHand("mean") for _ in range(members)])
    small = {"steps": 8, "meta_batch": 2, "validation_tasks": 6, "eval_every": 1, "log_every": 8}
    optimizer: Any = lambda ps: torch.optim.SGD(ps, lr=0.5)  # noqa: E731
    return MetaTrainer(
        model, tasks, maml=MAML(inner_lr=0.3, eval_steps=1, engine="vmap"), select_by=select_by,
        optimizer=optimizer, progress=False, schedule="constant", **{**small, **settings},
    )  # fmt: skip


@no_figures
@pytest.mark.parametrize("select_by", SELECTIONS)
def test_the_best_state_is_that_of_the_best_chosen_score(select_by: str) -> None:
    tracker = Recorder()
    trainer = made(select_by, tracker=tracker)
    trainer.fit()
    scores = tracker.series(trainer.monitor)
    assert len(scores) == 9 and len(set(scores)) > 1
    assert trainer.best_value == max(scores) and trainer.best_step == scores.index(max(scores))
    trainer.load_best()
    found = trainer.test(6, split="validation", inductive=select_by == "inductive").accuracies
    assert found is not None and float(found[0, -1]) == pytest.approx(trainer.best_value)


def test_both_scores_are_recorded_where_the_inductive_one_chooses() -> None:
    tracker = Recorder()
    trainer = made("inductive", tracker=tracker, steps=1)
    assert trainer.monitor == "validation/inductive_accuracy_after"
    alone = trainer.evaluator.score("validation", 6, inductive=True)
    together = trainer.evaluator.score("validation", 6)
    trainer.fit()
    for name, scores in (("", together), ("inductive_", alone)):
        assert scores.accuracies is not None
        first = tracker.series(f"validation/{name}loss_after")[0]
        assert first == pytest.approx(float(scores.losses[:, -1].mean()), rel=1e-5)
        by_step = tracker.series(f"validation_by_step/{name}accuracy_1")[0]
        assert by_step == pytest.approx(float(scores.accuracies[:, 1].mean()))
    assert not torch.allclose(alone.losses, together.losses)
    bands = [name for names in trainer.bands.values() for name in names]
    assert {"validation/accuracy_after", trainer.monitor} <= set(bands)
    assert [name for _, name, _ in tracker.drawn].count("validation/adaptation") == 2


@no_figures
def test_members_are_kept_at_their_best_inductive_scores() -> None:
    tracker = Recorder()
    trainer = made("inductive", 2, tracker=tracker, steps=4)
    assert trainer.monitor == "validation/inductive_member_accuracy"
    trainer.fit()
    trainer.load_best()
    found = trainer.test(6, split="validation", inductive=True).members
    assert found is not None and found.accuracies is not None
    torch.testing.assert_close(found.accuracies[:, 0, -1].double(), trainer.best_values)


@pytest.mark.parametrize("select_by", SELECTIONS)
def test_patience_waits_for_the_chosen_score(
    select_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = made(select_by, patience=2, steps=40)
    real, seen = trainer.evaluator.score, {"transductive": 0, "inductive": 0}

    def worse(split: Any, count: int, *, inductive: bool = False) -> Any:
        """Scores of the kind that chooses fall, those of the other rise."""
        name = "inductive" if inductive else "transductive"
        seen[name] += 1
        sign = -1 if name == select_by else 1
        found = real(split, count, inductive=inductive)
        return found._replace(accuracies=torch.full_like(found.accuracies, sign * seen[name]))

    monkeypatch.setattr(trainer.evaluator, "score", worse)
    assert trainer.fit().reason == "patience" and trainer.step == 2


def test_reports_are_both_where_the_inductive_score_chose() -> None:
    one, other = made("inductive"), made()
    assert list(one.reports(tasks=2, inductive=None)) == ["transductive", "inductive"]
    assert list(other.reports(tasks=2, inductive=None)) == ["transductive"]
    headlines = [found.headline() for found in one.reports(tasks=2).values()]
    assert [list(names) for names in headlines] == [["test/accuracy"], ["test/inductive_accuracy"]]
    several = made("inductive", 2).test(2, inductive=True).member_headlines()
    assert [list(names) for names in several] == [["test/inductive_accuracy"]] * 2


def test_a_checkpoint_goes_on_with_its_own_score_alone(tmp_path: Path) -> None:
    for select_by, other in (SELECTIONS, SELECTIONS[::-1]):
        folder = tmp_path / select_by
        made(select_by, folder=folder, steps=2).fit()
        last = folder / "checkpoints" / "last.pt"
        with pytest.raises(DataError, match="select_by"):
            made(other).resume(last)
        again = made(select_by, folder=folder, steps=4)
        again.resume(last)
        again.fit()
        whole = made(select_by, steps=4)
        whole.fit()
        assert_same(again.module.state_dict(), whole.module.state_dict())
        assert again.best_step == whole.best_step


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(SettingError, match="select_by='alone': .*transductive.*inductive"):
        made("alone")


# --- no validation tasks -----------------------------------------------------------------------


@pytest.mark.parametrize("members", [0, 2])
def test_without_validation_tasks_the_newest_state_is_the_best(
    members: int, tmp_path: Path
) -> None:
    def training(folder: Path | None = None, **settings: Any) -> MetaTrainer:
        tasks = without_validation()
        return made(members=members, tasks=tasks, folder=folder, eval_every=3, **settings)

    trainer = training(tmp_path)
    result = trainer.fit()
    assert (result.best_name, result.best_step, result.best_value) == ("validation/step", 8, 8.0)
    newest = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    trainer.load_best()
    assert_same(dict(trainer.module.state_dict()), newest)
    assert trainer.validate() == {"validation/step": 8.0}
    report = trainer.test(3)
    assert report.tasks == 3
    begun = training(tmp_path / "begun", steps=8)
    begun.loop.settings = type(begun.settings)(steps=4, progress=False, schedule="constant")
    begun.fit()
    again = training()
    again.resume(tmp_path / "begun" / "checkpoints" / "last.pt")
    assert again.fit().best_step == 8
    assert_same(dict(again.module.state_dict()), newest)
    with pytest.raises(SettingError, match="split='validation': these data have train, test"):
        trainer.test(3, split="validation")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patience": 3}, "patience=3: None is needed: the tasks have no validation split"),
        ({"select_by": "inductive"}, "select_by='inductive': transductive is needed: the tasks"),
    ],
)
def test_what_needs_validation_tasks_is_refused_without(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence):
        made(tasks=without_validation(), **settings)


# --- the command line --------------------------------------------------------------------------


@no_figures
def test_a_run_says_which_number_chose_its_state(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    given = [*TINY, "trainer.select_by=inductive", f"hydra.run.dir={tmp_path / 'out'}"]
    assert run("train", *given).code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["test"]) == {"transductive", "inductive"}
    assert "validation/inductive_loss_after" in results
    outcome = run("train", "resume=out", "trainer.select_by=transductive")
    assert outcome.code == 2
    assert "inductive is needed, as resume=out has it: its best was chosen so" in outcome.err
    assert run("train", "resume=out", "trainer.select_by=inductive").code == 0
