"""``scripts/attribute.py``: which training examples made a run's networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.attribution.findings_file import load_findings
from metalearn.attribution.kept_on_disk import WalkCheckpoint
from metalearn.attribution.scored_network import METHODS, SELF_METHODS
from metalearn.cli import attributed_findings, attributed_runs
from metalearn.core import HyperProgress
from tests.support.commands import Outcome, call

Run = Callable[..., Outcome]

SHORT = [
    "model.hidden=[6]", "model.activation=gelu", "optimizer=sgd", "trainer.steps=6",
    "trainer.eval_every=3", "trainer.checkpoint_every=6", "trainer.log_every=3",
    "trainer.progress=false",
]  # fmt: skip
KINDS = {
    "one": ["trainer=per_sample", "trainer.max_norm=inf", *SHORT],
    "members": ["trainer=ensemble", "trainer.members=2", *SHORT],
    "waves": ["trainer=ensemble", "trainer.members=1", "data=waves", *SHORT],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("known")


@pytest.fixture
def folder(request: pytest.FixtureRequest, run: Run, known: Path, tmp_path: Path) -> Path:
    """A copy of the run of a kind, which the first test that asks has trained."""
    kind = known / request.param
    if not kind.exists():
        outcome = run("train", *KINDS[request.param], f"hydra.run.dir={kind}")
        assert outcome.code == 0, outcome.err
    return Path(shutil.copytree(kind, tmp_path / "out"))


def only(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("folder", kinds, indirect=True)


@only("one", "members", "waves")
def test_everything_of_every_kind_of_run(run: Run, folder: Path) -> None:
    several = ["targets=3", "subsets=3", "leave_out=[0.1]", "leave_k_out=[3,20]"]
    outcome = run("attribute", f"run={folder}", *several)
    assert outcome.code == 0, outcome.err
    report = json.loads((folder / "attribution-test.json").read_text())
    found = load_findings(folder / "attribution-test.npz")
    regression = "waves" in str(report["settings"]["run"]) or found.class_names is None
    methods = [m for m in METHODS if not (regression and m == "trak")]
    alone = [m for m in SELF_METHODS if not (regression and m == "el2n")]
    assert list(found.scores) == methods and list(found.self_scores) == alone
    for scores in found.scores.values():
        assert scores.shape == (3, found.example_count) and bool(scores.isfinite().all())
    assert all(f"| {name} |" in outcome.out for name in methods)
    assert ("left out: trak" in outcome.out) == regression
    assert "differ by" not in outcome.out and "made again" not in outcome.out
    assert "</html>" in (folder / "attribution-test.html").read_text(encoding="utf-8")
    assert len(report["of_targets"]) == 3 and report["curvature"]["eigenvalues"]
    assert report["step"] == 6 and "torch" in report["provenance"]["versions"]
    assert [s.left_out for s in found.retrained] == pytest.approx([0.1], abs=0.01)
    left = found.leave_k_out
    assert left is not None and set(left.changes) == {*methods, "chance"}
    assert bool(left.flips) != regression and ("20: flipped" in outcome.out) != regression
    assert "| (as many by chance) |" in outcome.out and "20: loss" in outcome.out
    assert [e["left_out"] for e in report["methods"]["exact"]["leave_k_out"]] == [3, 20]
    assert not (folder / "attribution").exists()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_members_that_stood_elsewhere_are_said_and_retrained_up_to_there(
    run: Run, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    given = [*KINDS["members"], f"trainer.schedule={schedule}", "hydra.run.dir=out"]
    assert run("train", *given).code == 0
    seen: list[int] = []
    usual = attributed_findings.retrain_subsets

    def told(*arguments: Any, **how: Any) -> Any:
        seen.append(how["steps"])
        return usual(*arguments, **how)

    monkeypatch.setattr(attributed_findings, "retrain_subsets", told)
    monkeypatch.setattr(attributed_runs, "steps_of", lambda loaded, which, member: (4, 6)[member])
    few = ["methods=[cosine]", "self_methods=[]", "targets=2", "leave_k_out=[3]"]
    outcome = run("attribute", "run=out", *few)
    assert outcome.code == 0, outcome.err
    state = "of 2 members, their mean: 0 after step 4; 1 after step 6"
    assert f"out, {state}: 2 targets" in outcome.out
    report = json.loads(Path("out", "attribution-test.json").read_text())
    assert (report["state"], report["step"]) == (state, 6)
    assert seen == [4 if schedule == "constant" else 6]
    assert ("stood at step 4, subsets are trained for all 6" in outcome.out) == (seen == [6])


@pytest.mark.parametrize(
    ("members", "steps", "words"),
    [
        ([0], [400], "after step 400"),
        ([3], [20], "after step 20"),
        ([0, 2], [400, 400], "after step 400, the mean of 2 members"),
        ([0, 1, 2], [9, 5, 9], "of 3 members, their mean: 1 after step 5; 0, 2 after step 9"),
    ],
)
def test_where_networks_stood_in_words(members: list[int], steps: list[int], words: str) -> None:
    assert attributed_runs.state_of(members, steps) == words


@only("members")
def test_scores_of_members_are_averaged_and_their_disagreement_told(run: Run, folder: Path) -> None:
    few = ["methods=[cosine]", "self_methods=[]", "targets=[5,2]"]
    apart = []
    for members in ("[0]", "[1]", "null"):
        outcome = run("attribute", f"run={folder}", f"members={members}", *few)
        assert outcome.code == 0, outcome.err
        apart.append(load_findings(folder / "attribution-test.npz"))
    both = apart.pop()
    assert both.targets.rows.tolist() == [5, 2]
    expected = torch.stack([one.scores["cosine"] for one in apart]).mean(0)
    torch.testing.assert_close(both.scores["cosine"], expected)
    report = json.loads((folder / "attribution-test.json").read_text())
    assert 0 < report["disagreement_of_members"]["cosine"] < 2
    assert "disagreement of members" in outcome.out


@only("one")
def test_the_best_state_is_explained_as_the_end_of_its_part_of_the_run(
    run: Run, folder: Path
) -> None:
    outcome = run("attribute", f"run={folder}", "checkpoint=best", "methods=[exact]", "targets=2")
    assert outcome.code == 0, outcome.err
    best = torch.load(folder / "checkpoints" / "best.pt", weights_only=True)
    report = json.loads((folder / "attribution-test.json").read_text())
    assert report["step"] in (3, 6) and "made again" not in outcome.out
    assert best is not None


@only("one")
@pytest.mark.parametrize("spill", ["true", "false"])
def test_a_walk_that_was_broken_off_goes_on(
    run: Run, folder: Path, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"run={folder}", "methods=[exact]", "self_methods=[]", "targets=2"]
    settings += ["progress=false", f"spill={spill}"]
    assert run("attribute", *settings).code == 0
    whole = load_findings(folder / "attribution-test.npz").scores["exact"]
    usual, seen = WalkCheckpoint.__call__, []

    def broken(self: Any, progress: HyperProgress) -> None:
        self.seconds = 0.0
        usual(self, progress)
        seen.append((progress.phase, progress.step))
        if seen.count(("back", 3)) and len(seen) < 12:
            raise OSError(28, "no space left", "somewhere")

    monkeypatch.setattr(WalkCheckpoint, "__call__", broken)
    outcome = run("attribute", *settings)
    assert outcome.code == 1 and seen[-1] == ("back", 3)
    assert (folder / "attribution" / "member-0" / "walk.pt").is_file()
    assert (folder / "attribution" / "member-0" / "states").is_dir() == (spill == "true")
    monkeypatch.setattr(WalkCheckpoint, "__call__", usual)
    later: list[Any] = []
    monkeypatch.setattr(WalkCheckpoint, "__call__", lambda self, p: later.append((p.phase, p.step)))
    assert run("attribute", *settings).code == 0
    assert later == [("back", 2), ("back", 1), ("back", 0)]
    again = load_findings(folder / "attribution-test.npz").scores["exact"]
    assert torch.equal(again, whole) and not (folder / "attribution").exists()


@only("one")
def test_a_walk_of_other_targets_is_not_gone_on_with(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"run={folder}", "methods=[exact]", "self_methods=[]", "progress=false"]
    assert run("attribute", *settings, "targets=[4,5]").code == 0
    expected = load_findings(folder / "attribution-test.npz").scores["exact"]
    usual = WalkCheckpoint.__call__

    def broken(self: Any, progress: HyperProgress) -> None:
        self.seconds = 0.0
        usual(self, progress)
        if (progress.phase, progress.step) == ("back", 3):
            raise OSError(28, "no space left", "somewhere")

    monkeypatch.setattr(WalkCheckpoint, "__call__", broken)
    assert run("attribute", *settings, "targets=[0,1]").code == 1
    monkeypatch.setattr(WalkCheckpoint, "__call__", usual)
    assert run("attribute", *settings, "targets=[4,5]").code == 0
    assert torch.equal(load_findings(folder / "attribution-test.npz").scores["exact"], expected)


@only("one")
def test_weights_that_the_run_does_not_end_at_are_told(run: Run, folder: Path) -> None:
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert "lr: 0.1\n" in text
    path.write_text(text.replace("lr: 0.1\n", "lr: 0.3\n"), encoding="utf-8")
    outcome = run("attribute", f"run={folder}", "methods=[cosine]", "self_methods=[]", "targets=1")
    assert outcome.code == 0 and "warning: the run of network 0, made again, ends" in outcome.out


@only("one")
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("methods=[exakt]", "methods='exakt': known are exact|methods='exakt': did you mean"),
        ("methods=[]", "methods=[]: at least one of exact"),
        ("methods=exact", "methods='exact': a list of exact"),
        ("self_methods=[exact]", "self_methods='exact': known are self_influence"),
        ("targets=0", "targets=0: a whole number of at least 1"),
        ("targets=[99999]", "targets=99999: places from 0 to"),
        ("targets=[1,1]", "targets=[1, 1]: each number once"),
        ("members=[1]", "members=1: a whole number from 0 to 0|members=1: a whole number of at"),
        ("members=[]", "members=[]: a list of whole numbers"),
        ("members=[0,0]", "members=[0, 0]: each number once"),
        ("split=train", "split='train': validation or test is needed"),
        ("subsets=1", "subsets=1: 0, or at least 2"),
        ("leave_out=[0.1]", "leave_out=[0.1]: subsets=64 is needed for it"),
        ("leave_k_out=5", "leave_k_out=5: a list of whole numbers"),
        ("leave_k_out=[0]", "leave_k_out=0: a whole number of at least 1"),
        ("leave_k_out=[2,2]", "leave_k_out=[2, 2]: each number once"),
        ("leave_k_out=[99999]", "leave_k_out=99999: a whole number of at most"),
        ("training_tasks=-1", "training_tasks=-1: a whole number of at least 0"),
        ("damping=0", "damping=0: a finite number above 0"),
        ("memory=much", "memory='much': an amount above 0"),
        ("check=5", "check=5: true or false"),
        ("spill=5", "spill=5: true or false"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, folder: Path, argument: str, sentence: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    outcome = run("attribute", f"run={folder}", argument)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert any(outcome.err.startswith(f"error: {one}") for one in sentence.split("|")), outcome.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@only("one")
@pytest.mark.parametrize(
    "argument",
    [
        "training_tasks=5",
        "projection=8",
        "memory=1GB",
        "damping=0.1",
        "checkpoints=3",
        "check=false",
    ],
)
def test_a_setting_that_nothing_uses_is_refused(run: Run, folder: Path, argument: str) -> None:
    outcome = run("attribute", f"run={folder}", "methods=[cosine]", "self_methods=[]", argument)
    assert outcome.code == 2 and "is needed for it" in outcome.err


def test_a_run_that_cannot_be_explained(run: Run) -> None:
    assert run("train", "trainer=per_sample", *SHORT, "hydra.run.dir=clipped").code == 0
    outcome = run("attribute", "run=clipped")
    sentence = "error: trainer.max_norm=1.0: max_norm=inf is needed"
    assert outcome.code == 2 and outcome.err.startswith(sentence), outcome.err
