"""The command line: what it leaves behind, what it says of bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from metalearn.cli import load_learner
from tests.saved_runs.double import copy_of
from tests.support.commands import ROOT, TINY, Outcome, call
from tests.support.unrendered import with_pixels

Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


def pictures(root: Path, classes: int = 12, each: int = 4) -> Path:
    generator = torch.Generator().manual_seed(0)
    for c in range(classes):
        folder = root / f"class{c:02d}"
        folder.mkdir(parents=True)
        for i in range(each):
            pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return root


def test_a_run_explains_itself(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pixels(monkeypatch)
    folder = tmp_path / "out"
    outcome = run("train", *TINY, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert "after 3 inner steps" in outcome.out
    assert "tensorboard --logdir" in outcome.out
    for name in ("config.yaml", "metrics.jsonl", "results.json", "provenance.json"):
        assert (folder / name).is_file(), name
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    assert list(folder.glob("events*"))
    config = (folder / "config.yaml").read_text()
    assert "${" not in config
    assert "inner_lr: 0.01" in config
    results = json.loads((folder / "results.json").read_text())
    assert results["reason"] == "finished"
    assert results["steps"] == 4
    assert results["checkpoint"] == "best", "which weights are tested"
    assert len(results["test"]["transductive"]["loss"]) == 4
    assert "torch" in json.loads((folder / "provenance.json").read_text())["versions"]
    steps = [json.loads(s)["step"] for s in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {0, 2, 4} <= set(steps)


def test_evaluation_and_the_learner_to_take_away(run: Run, tmp_path: Path) -> None:
    data, folder = pictures(tmp_path / "mine"), tmp_path / "out"
    settings = [
        *(s for s in TINY if not s.startswith(("task=", "model", "maml"))),
        "task=folder",
        f"task.root={data}",
        "task.way=2",
        "task.query=2",
        "task.channels=1",
        "task.image_size=16",
        "model=conv4",
        "model.filters=3",
    ]
    assert run("train", *settings, f"hydra.run.dir={folder}").code == 0
    outcome = run("evaluate", f"run={folder}", "tasks=6")
    assert outcome.code == 0, outcome.err
    report = json.loads((folder / "evaluation-test.json").read_text())
    assert set(report["scores"]) == {"transductive", "inductive"}
    for score in report["scores"].values():
        assert [row["inner_step"] for row in score["accuracy"]] == [0, 1, 2, 3]
        assert all(0 <= row["mean"] <= 1 and row["interval95"] >= 0 for row in score["accuracy"])
    outcome = run("evaluate", f"run={folder}", "tasks=6", "conformal.coverage=0.8")
    assert outcome.code == 0 and "conformal sets (thr, 80 % asked)" in outcome.out, outcome.err
    with_sets = json.loads((folder / "evaluation-test-thr0.8.json").read_text())["scores"]
    for name, score in with_sets.items():
        assert 0 <= score["sets"]["coverage"]["mean"] <= 1 and 0 <= score["aurc"]["mean"] <= 1
        assert {k: v for k, v in score.items() if k != "sets"} == report["scores"][name]
    learner = load_learner(folder)
    support = (torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    classifier = learner.adapt(support)
    assert classifier(torch.rand(5, 1, 16, 16)).shape == (5, 2)
    outcome = run("evaluate", f"run={folder}", "tasks=6", "task.way=3")
    assert outcome.code == 2
    assert "task.way=3" in outcome.err


def test_sizes_of_tasks_by_split(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    sizes = "task.shot={train: 2, test: 3}"
    assert run("train", *TINY, sizes, f"hydra.run.dir={folder}").code == 0
    config = OmegaConf.load(folder / "config.yaml")
    assert config.task.shot == {"train": 2, "test": 3}
    assert run("train", f"resume={folder}", "trainer.steps=6").code == 0
    other = "task.shot={train: 2, test: 4}"
    assert run("evaluate", f"run={folder}", "tasks=6", other).code == 0
    assert (folder / "evaluation-test-shottrain2-test4.json").is_file()
    outcome = run("train", *TINY, "task.shot={test: 3}", f"hydra.run.dir={tmp_path / 'no'}")
    assert outcome.code == 2 and "task.shot" in outcome.err
    assert "a number for the train split is needed as well" in outcome.err


def test_a_resumed_run_ends_as_one_that_never_stopped(run: Run, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    assert run("train", *TINY, "trainer.schedule=constant", f"hydra.run.dir={parts}").code == 0
    # As if it had been stopped: a longer run that goes on from the middle.
    outcome = run("train", f"resume={parts}", "trainer.steps=8")
    assert outcome.code == 0, outcome.err
    longer = [s if s != "trainer.steps=4" else "trainer.steps=8" for s in TINY]
    straight = tmp_path / "straight"
    assert run("train", *longer, "trainer.schedule=constant", f"hydra.run.dir={straight}").code == 0
    ends = [torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (parts, straight)]
    assert ends[0]["step"] == ends[1]["step"] == 8
    for name, value in ends[0]["module"].items():
        assert torch.equal(value, ends[1]["module"][name]), name


def test_a_folder_that_holds_a_run_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run("train", *TINY, f"hydra.run.dir={folder}").code == 0
    before = (folder / "config.yaml").read_bytes()
    outcome = run("train", *TINY, "seed=1", f"hydra.run.dir={folder}")
    assert outcome.code == 2
    assert "holds a run already" in outcome.err
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["trainer.stepz=3"],
            "trainer.stepz: there is no such setting; did you mean trainer.steps",
        ),
        (
            ["trainer.test_tasks=3"],
            "trainer.test_tasks: there is no such setting; did you mean test_tasks?",
        ),
        (
            ["task.least.ways=3"],
            "task.least.ways: there is no such setting; did you mean task.least.way?",
        ),
        (["task.augment.rotat=3"], "did you mean task.augment.rotate?"),
        (
            ["task=sinusoid", "task.least.way=3"],
            "task.least.way: there is no such setting here; it is one of",
        ),
        (
            ["learner=anil", "learner.head=nosuch"],
            "error: learner.head='nosuch': a pattern that matches",
        ),
        (["learner=cavia", "learner.layer=nosuch"], "error: learner.layer='nosuch': the name of a"),
        (["foo=1"], "foo: there is no such setting"),
        (["+trainer.foo=1"], "trainer.foo=1: there is no such setting"),
        (["trainer.steps=abc"], "trainer.steps='abc': a whole number is needed"),
        (["trainer.steps=0"], "trainer.steps=0: a whole number of at least 1 is needed"),
        (["trainer.warmup=9"], "trainer.warmup=9: fewer than trainer.steps=4"),
        (["trainer.schedule=stairs"], "trainer.schedule='stairs': one of cosine, constant"),
        (["trainer.clip=0"], "trainer.clip=0: None or a number above 0"),
        (["trainer.meta_batch=0"], "trainer.meta_batch=0: a whole number"),
        (["optimizer.lr=abc"], "optimizer.lr='abc': a number"),
        (["optimizer.lr=-1"], "torch refuses these settings: Invalid learning rate: -1"),
        (["maml.inner_lr=0"], "maml.inner_lr=0: a finite number above 0"),
        (["maml.inner_steps=-1"], "maml.inner_steps=-1: a whole number of at least 0"),
        (
            ["maml.frozen=nothing"],
            "maml.frozen='nothing': a pattern that matches a parameter of 1.",
        ),
        (["maml.norm=rms"], "maml.norm='rms': one of batch_stats, running, group"),
        (["maml.first_order=2"], "maml.first_order=2: true or false"),
        (["task=omniglott"], "task: there is no choice 'omniglott'; known: "),
        (["task.shot=0"], "task.shot=0: a whole number of at least 1"),
        (["model=conv4", "~model.hidden"], "model.input_shape=(1,): Conv4 takes pictures"),
        (["model.hidden=[0]"], "model.hidden=0: a whole number of at least 1"),
        (["seed=-1"], "seed=-1: a whole number of at least 0"),
        (["device=nonsense"], "device='nonsense': auto, cpu or a device"),
        (["resume=nowhere"], "resume='nowhere': the folder of a run"),
        (["test_tasks=-1"], "test_tasks=-1: a whole number of at least 0"),
        (["task.shot=[1"], "task.shot=[1"),
    ],
)
def test_bad_settings_end_in_one_sentence(
    run: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    base = [s for s in TINY if s.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    if "model=conv4" in arguments:
        base.remove("model.hidden=[8]")
        arguments = ["model=conv4"]
    outcome = run("train", *base, *arguments, *_folder(tmp_path, arguments))
    assert outcome.code == 2, outcome.out + outcome.err
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert not (tmp_path / "out").exists(), "a run that never began leaves no folder"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["task=folder"], "task.root=None: this setting has to be given"),
        (["task=folder", "task.root=nowhere"], "task.root"),
        (["task=folder", "task.root=mine", "task.way=9"], "task.way=9: the "),
        (["task=folder", "task.root=mine", "task.shot=9"], "task.shot + query=14: class "),
        (["task=omniglot", "task.download=false"], "or use glyphs"),
        (["task=omniglot", "task.split=half"], "task.split='half': one of random, alphabets"),
    ],
)
def test_bad_tasks_end_in_one_sentence(
    run: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    pictures(tmp_path / "mine", each=6)
    outcome = run("train", *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.code == 2, outcome.out + outcome.err
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "run: this setting has to be given"),
        (["run=nowhere"], "run='nowhere': the folder of a run"),
        (["run=out", "tasks=0"], "tasks=0: a whole number of at least 1"),
        (["run=out", "checkpoint=middle"], "checkpoint='middle': best or last"),
        (["run=out", "split=dev"], "split='dev': one of train, validation, test"),
        (["run=out", "eval_steps=-1"], "eval_steps=-1: a whole number of at least 0"),
        (["run=out", "task.shoot=1"], "task.shoot: there is no such setting"),
    ],
)
def test_bad_evaluations_end_in_one_sentence(
    run: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    copy_of(ROOT / "tests" / "saved_runs" / "v1" / "meta_sinusoid-finished", tmp_path / "out")
    outcome = run("evaluate", *arguments)
    assert outcome.code == 2, outcome.out + outcome.err
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err


def test_a_refused_run_leaves_files_of_others_alone(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.log").write_text("notes")
    outcome = run("train", *TINY, "seed=-1", f"hydra.run.dir={folder}")
    assert outcome.code == 2
    assert (folder / "mine.log").read_text() == "notes"


def test_a_resumed_run_keeps_its_settings(run: Run, tmp_path: Path) -> None:
    assert run("train", *TINY, f"hydra.run.dir={tmp_path / 'out'}").code == 0
    outcome = run("train", "resume=out", "model=conv4")
    assert outcome.code == 2
    assert "a resumed run keeps its settings" in outcome.err


def test_divergence_is_reported_with_a_saved_state(run: Run, tmp_path: Path) -> None:
    outcome = run(
        "train", *TINY, "maml.inner_lr=1e30", "maml.inner_steps=3", f"hydra.run.dir={tmp_path}/out"
    )
    assert outcome.code == 1
    assert "step 0: loss" in outcome.err
    assert (tmp_path / "out" / "checkpoints" / "non_finite_step_0.pt").is_file()


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_help_shows_examples_and_settings(run: Run, script: str) -> None:
    outcome = run(script, "--help")
    assert outcome.code == 0
    assert f"python scripts/{script}.py" in outcome.out
    assert "device: auto" in outcome.out


def _folder(tmp_path: Path, arguments: list[str]) -> list[str]:
    resuming = any(a.startswith("resume") for a in arguments)
    return [] if resuming else [f"hydra.run.dir={tmp_path / 'out'}"]
