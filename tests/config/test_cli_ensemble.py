"""The command line with trainer=ensemble: what it leaves behind, what it says of bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from metalearn.cli import load_ensemble, load_learner
from metalearn.data import digits_data
from metalearn.errors import SettingError
from metalearn.models import MLP
from tests.support.builders import without_ensemble_figures
from tests.support.commands import TINY, Outcome, call
from tests.support.unrendered import with_pixels

Run = Callable[..., Outcome]

ENSEMBLE = [
    "trainer=ensemble",
    "trainer.members=3",
    "trainer.steps=4",
    "trainer.batch_size=16",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
    "trainer.log_every=2",
    "trainer.engine=batched",
    "trainer.progress=false",
    "trainer.schedule=constant",
    "model.hidden=[8]",
]
OUTSIDE = ["ood=glyphs", "ood.image_size=8", "ood.renderings=6", "ood.classes=6"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("METALEARN_DATA", str(tmp_path / "data"))

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@pytest.fixture(name="no_figures")
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of these tiny runs."""
    without_ensemble_figures(monkeypatch)


def saved(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
    module = state["module"]
    assert isinstance(module, dict)
    return module


def test_a_run_explains_itself(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_pixels(monkeypatch)
    folder = tmp_path / "out"
    sweep = ["trainer.lr={low:0.001,high:0.1}", "trainer.weight_decay=[0.0,0.01,0.1]"]
    outcome = run("train", *ENSEMBLE, *sweep, *OUTSIDE, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert "test: 450 samples, 3 members" in outcome.out
    assert "out of distribution by mutual information: AUROC" in outcome.out
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    config = OmegaConf.load(folder / "config.yaml")
    assert {"data", "ood", "model", "optimizer", "trainer"} <= set(config)
    assert not {"task", "maml"} & set(config), "what this trainer does not use is not shown"
    results = json.loads((folder / "results.json").read_text())
    assert (results["reason"], results["steps"], results["endings"]) == ("finished", 4, {})
    test = results["test"]["test"]
    assert len(test["members"]) == len(test["by_size"]) == 3
    assert test["ensemble"] == test["by_size"][2] | {
        name: test["ensemble"][name]
        for name in ("expected_entropy", "mutual_information", "disagreement")
    }
    assert set(test["out_of_distribution"]) == {"max_probability", "entropy", "mutual_information"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {0, 2, 4} <= {line["step"] for line in lines}
    trained = next(line for line in lines if "train/learning_rate" in line)
    assert trained["train/learning_rate"] == pytest.approx(0.1), "the largest of the members"
    rows = sorted(p.name for p in folder.glob("member_*"))
    assert rows == ["member_00", "member_01", "member_02"]
    member = next(line for line in lines if "member_00/test/accuracy" in line)
    assert member["member_02/test/nll"] == pytest.approx(test["members"][2]["nll"])


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_run_ends_as_one_that_never_stopped(run: Run, tmp_path: Path) -> None:
    parts, straight = tmp_path / "parts", tmp_path / "straight"
    extra = ["model.dropout=0.2", "trainer.bootstrap=true", "trainer.max_shift=1", "test_tasks=0"]
    assert run("train", *ENSEMBLE, *extra, f"hydra.run.dir={parts}").code == 0
    outcome = run("train", f"resume={parts}", "trainer=ensemble", "trainer.steps=8")
    assert outcome.code == 0, outcome.err
    longer = [s for s in ENSEMBLE if s != "trainer.steps=4"] + ["trainer.steps=8"]
    assert run("train", *longer, *extra, f"hydra.run.dir={straight}").code == 0
    for name in ("last", "best"):
        one, other = saved(parts, name), saved(straight, name)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    outcome = run("train", f"resume={parts}", "trainer=ensemble", "trainer.member_curves=true")
    assert outcome.code == 0, outcome.err
    outcome = run("train", f"resume={parts}", "trainer=meta")
    assert outcome.code == 2
    assert "a resumed run keeps its settings" in outcome.err


@pytest.mark.usefixtures("no_figures")
def test_a_member_is_the_run_of_its_seed(run: Run, tmp_path: Path) -> None:
    many, one, listed = (tmp_path / name for name in ("many", "one", "listed"))
    fixed = ["data.seed=0", "model.dropout=0.3", "test_tasks=0"]
    assert run("train", *ENSEMBLE, *fixed, "seed=4", f"hydra.run.dir={many}").code == 0
    alone = [*ENSEMBLE, *fixed, "trainer.members=1", "seed=6", f"hydra.run.dir={one}"]
    assert run("train", *alone).code == 0
    seeds = [*ENSEMBLE, *fixed, "trainer.seeds=[6,1,4]", f"hydra.run.dir={listed}"]
    assert run("train", *seeds).code == 0
    for key, value in saved(many).items():
        if not key.endswith((".p", ".draw")):
            torch.testing.assert_close(value[2], saved(one)[key][0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(value[2], saved(listed)[key][0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(value[0], saved(listed)[key][2], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("no_figures")
def test_evaluation_and_the_ensemble_to_take_away(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run("train", *ENSEMBLE, f"hydra.run.dir={folder}").code == 0
    outcome = run("evaluate", f"run={folder}")
    assert outcome.code == 0, outcome.err
    results = json.loads((folder / "results.json").read_text())["test"]["test"]
    report = json.loads((folder / "evaluation-test.json").read_text())
    assert report["scores"] == results
    outcome = run("evaluate", f"run={folder}", "split=validation", "checkpoint=last", "ood=digits")
    assert outcome.code == 0, outcome.err
    report = json.loads((folder / "evaluation-validation-last.json").read_text())
    assert report["step"] == 4
    auroc = report["scores"]["out_of_distribution"]["entropy"]["auroc"]
    assert auroc == pytest.approx(0.5, abs=0.1), "other samples of the same digits"
    ensemble = load_ensemble(folder)
    data = digits_data()
    x, y = data.part("test")
    logits = ensemble(x)
    assert logits.shape == (3, 450, 10)
    accuracies = (logits.argmax(-1) == y).double().mean(1)
    assert accuracies.tolist() == pytest.approx([m["accuracy"] for m in results["members"]])
    fresh = MLP((1, 8, 8), 10, hidden=(8,))
    fresh.load_state_dict(ensemble.member(1).state_dict())
    torch.testing.assert_close(fresh(x), logits[1], rtol=1e-5, atol=1e-5)
    with pytest.raises(SettingError, match="a run of trainer=meta is needed; see load_ensemble"):
        load_learner(folder)
    for bad, sentence in (
        ("task.way=3", "task.way=3: the run has no tasks, so null is needed"),
        ("eval_steps=2", "eval_steps=2: the run has no tasks"),
        ("split=dev", "split='dev': one of train, validation, test"),
    ):
        outcome = run("evaluate", f"run={folder}", bad)
        assert outcome.code == 2
        assert sentence in outcome.err
        assert outcome.err.count("\n") == 1, outcome.err


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_tasks_has_no_second_data_set(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run("train", *TINY, f"hydra.run.dir={folder}").code == 0
    outcome = run("evaluate", f"run={folder}", "ood=glyphs")
    assert outcome.code == 2
    assert "the run has tasks, so null is needed" in outcome.err
    with pytest.raises(SettingError, match="a run of members is needed; see load_learner"):
        load_ensemble(folder)


@pytest.mark.usefixtures("no_figures")
def test_a_member_that_diverges_is_reported(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = [*ENSEMBLE, "optimizer=sgd", "trainer.lr=[0.01,1e35,0.02]", "trainer.clip=null"]
    outcome = run("train", *settings, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    endings = json.loads((folder / "results.json").read_text())["endings"]
    assert list(endings) == ["1"]
    assert endings["1"].startswith("diverged at step")
    bad = [*settings, "trainer.lr=1e35", f"hydra.run.dir={tmp_path / 'bad'}"]
    outcome = run("train", *(s for s in bad if not s.startswith("trainer.lr=[")))
    assert outcome.code == 1
    assert "every member has diverged (member 0: diverged at step" in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trainer.members=0"], "trainer.members=0: a whole number of at least 1"),
        (["trainer.members=null"], "trainer.members=None: a whole number of at least 1"),
        (["trainer.seeds=[1,2]"], "trainer.seeds=[1, 2]: 3 are needed, one for each network"),
        (["trainer.lr=[0.1,0.2]"], "trainer.lr=[0.1, 0.2]: 3 values are needed"),
        (["trainer.lr={low:0.1}"], "trainer.lr={'low': 0.1}: low and high, both above 0"),
        (["trainer.lr=fast"], "trainer.lr='fast': "),
        (["trainer.dropout=0.5"], "trainer.dropout=[0.5, 0.5, 0.5]: every member needs a"),
        (["trainer.monitor=f1"], "trainer.monitor='f1': one of loss, accuracy"),
        (["trainer.engine=vmap"], "trainer.engine='vmap': one of auto, batched, loop"),
        (["trainer.meta_batch=3"], "trainer.meta_batch: there is no such setting"),
        (["trainer.batch_size=9999"], "trainer.batch_size=9999: the training part has"),
        (["trainer.memory=1kb"], "memory='1 kB': at least "),
        (["data=nothing"], "data: there is no choice 'nothing'; known: "),
        (["data.test_fraction=1.5"], "data.test_fraction=1.5: "),
        (["data=folder"], "data.root=None: this setting has to be given"),
        (["ood=folder"], "ood.root=None: this setting has to be given"),
        (["model=conv4", "data=folder", "data.root=nowhere"], "data.root"),
        (["+optimizer.weight_decay=0.1", "trainer.weight_decay=0.1"], "weight_decay=0.1: 0 is"),
        (["optimizer.lr=-1"], "torch refuses these settings: Invalid learning rate: -1"),
    ],
)
def test_bad_settings_end_in_one_sentence(
    run: Run, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    names = {a.partition("=")[0] for a in arguments}
    base = [s for s in ENSEMBLE if s.partition("=")[0] not in names]
    if "model" in names:
        base = [s for s in base if not s.startswith("model.")]
    outcome = run("train", *base, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.code == 2, outcome.out + outcome.err
    assert sentence in outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err


# --- members on weighted examples ---------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_members_on_subsets_go_on_and_are_scored(run: Run, tmp_path: Path) -> None:
    folder, setting = tmp_path / "out", "data.member_weights={leave_out:0.2,seed:3}"
    where = f"hydra.run.dir={folder}"
    assert run("train", *ENSEMBLE, setting, where, "trainer.steps=2").code == 0
    config = OmegaConf.load(folder / "config.yaml")
    assert config.data.member_weights == {"leave_out": 0.2, "seed": 3}
    outcome = run("train", f"resume={folder}", "trainer.steps=4")
    assert outcome.code == 0, outcome.err
    whole = tmp_path / "whole"
    assert run("train", *ENSEMBLE, setting, f"hydra.run.dir={whole}").code == 0
    for name, value in saved(whole).items():
        assert torch.equal(saved(folder)[name], value)
    assert run("evaluate", f"run={folder}").code == 0
    without = tmp_path / "without"
    assert run("train", *ENSEMBLE, f"hydra.run.dir={without}").code == 0
    assert any(not torch.equal(v, saved(whole)[name]) for name, v in saved(without).items())


@pytest.mark.usefixtures("no_figures")
def test_rare_classes_and_wrong_labels_are_planted_anew_where_a_run_goes_on(
    run: Run, tmp_path: Path
) -> None:
    folder, whole, without = (tmp_path / name for name in ("out", "whole", "without"))
    given = [*ENSEMBLE, "data.imbalance=20", "data.wrong_labels=0.3"]
    assert run("train", *given, f"hydra.run.dir={folder}", "trainer.steps=2").code == 0
    outcome = run("train", f"resume={folder}", "trainer.steps=4")
    assert outcome.code == 0 and "not the data" not in outcome.out + outcome.err
    for name, command in ((whole, given), (without, ENSEMBLE)):
        assert run("train", *command, f"hydra.run.dir={name}").code == 0
    for name, value in saved(whole).items():
        assert torch.equal(saved(folder)[name], value)
    assert any(not torch.equal(v, saved(whole)[name]) for name, v in saved(without).items())


@pytest.mark.usefixtures("no_figures")
def test_weights_of_a_file_that_changes(run: Run, tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.csv", tmp_path / "out"
    row = ",".join(["1"] * 1078)
    path.write_text("\n".join([row, row, row.replace("1", "0.5", 1)]))
    given = [f"data.member_weights={path}", "data.seed=0", f"hydra.run.dir={folder}"]
    outcome = run("train", *ENSEMBLE, *given)
    assert outcome.code == 0, outcome.err
    path.write_text("\n".join([row] * 3))
    outcome = run("train", f"resume={folder}", "trainer.steps=6")
    assert outcome.code == 2 and "member_weights" in outcome.err
    assert "the weights the run began with" in outcome.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data.member_weights={leave_out:2}"], "data.member_weights.leave_out=2: a number in (0,"),
        (["data.member_weights={leaveout:0.1}"], "data.member_weights.leaveout=0.1: there is no"),
        (["data.member_weights=[1,0]"], "data.member_weights=[1, 0]: {leave_out: 0.05, seed: 0}"),
        (["data.member_weights=0.5"], "data.member_weights=0.5: {leave_out: 0.05, seed: 0}, or a"),
        (["data.member_weights=w.txt"], "data.member_weights='w.txt': a file .npy or .csv"),
        (["data.member_weights=w.csv"], "w.csv: these weights cannot be read"),
        (["data.wrong_labels=1"], "data.wrong_labels=1: a number between 0 and 1 is needed"),
        (["data.wrong_labels=1e-6"], "data.wrong_labels=1e-06: a share is needed that is at least"),
        (["data.imbalance=1"], "data.imbalance=1: a finite number above 1 is needed"),
        (["data.imbalance=200"], "data.imbalance=200.0: at most 10"),
        (["data=waves", "+data.imbalance=2"], "data.imbalance=2: null is needed: these data have"),
        (["trainer.loss={name:focal,gamma:-1}"], "trainer.loss.gamma=-1: a finite number of at"),
        (["trainer.loss={gamma:1}"], "trainer.loss={'gamma': 1}: the name of a loss is needed"),
        (["data=waves", "trainer.loss=focal"], "trainer.loss='focal': gaussian_nll, mse or a"),
        (["data=waves", "+data.wrong_labels=0.3"], "data.wrong_labels=0.3: null is needed: these"),
        (
            ["ood=glyphs", "ood.wrong_labels=0.3"],
            "ood.wrong_labels=0.3: null is needed: nothing is trained on these data",
        ),
        (
            ["ood=glyphs", "ood.imbalance=3"],
            "ood.imbalance=3: null is needed: nothing is trained on these data",
        ),
        (["+data.weights=1"], "data.weights=1: there is no such setting"),
        (
            ["ood=glyphs", "ood.member_weights={leave_out:0.1}"],
            "ood.member_weights={'leave_out': 0.1}: null is needed: nothing is trained on these",
        ),
    ],
)  # fmt: skip
def test_weights_that_cannot_work(run: Run, given: list[str], said: str, tmp_path: Path) -> None:
    outcome = run("train", *ENSEMBLE, *given, f"hydra.run.dir={tmp_path / 'out'}")
    assert outcome.code == 2 and said in outcome.err
    assert "Traceback" not in outcome.err and not (tmp_path / "out").exists()
