"""A run folder that is not one's own may be opened: nothing in it is imported, called or written.

What a user types on the command line, or trusts, is free.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_object

from metalearn.cli import load_ensemble, load_learner, load_module
from metalearn.cli.allowed_targets import TARGETS
from metalearn.cli.run_config import saved_config
from metalearn.errors import DataError, SettingError
from tests.support.commands import ROOT, TINY, Outcome, call
from tests.support.foreign_runs import CHANGES, SAVED, TEXTS, Foreign, plant, watched

ATTACKS = [*CHANGES, *TEXTS]
LOADERS = {
    "meta_sinusoid-interrupted": load_learner,
    "ensemble-interrupted": load_ensemble,
    "per_sample-interrupted": load_module,
}
SENTENCE = r"run/config\.yaml: "

Run = Callable[..., Outcome]
Plant = Callable[..., Foreign]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def command(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return command


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Plant]:
    """A run with an attack; its folder is the working folder, from which Python imports."""

    def make(kind: str, attack: str = "") -> Foreign:
        found = plant(tmp_path, kind, attack)
        monkeypatch.chdir(found.folder)
        monkeypatch.syspath_prepend(str(found.folder))
        monkeypatch.setenv("PLANTED", "planted.Thing")
        return found

    yield make
    sys.modules.pop("planted", None)


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=ATTACKS.__getitem__)
def test_loaders_refuse_before_anything_happens(planted: Plant, number: int) -> None:
    attack, kind = ATTACKS[number], list(LOADERS)[number % len(LOADERS)]
    foreign = planted(kind, attack)
    modules = set(sys.modules)
    with watched() as events, pytest.raises(DataError, match=SENTENCE) as refusal:
        LOADERS[kind](foreign.folder)
    assert events == []
    assert set(sys.modules) == modules
    assert foreign.unharmed()
    if attack in CHANGES and attack != "bytes":
        assert "trust=true" in str(refusal.value)


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=ATTACKS.__getitem__)
def test_commands_refuse_before_anything_happens(planted: Plant, run: Run, number: int) -> None:
    foreign = planted("meta_sinusoid-interrupted", ATTACKS[number])
    before = {p: p.read_bytes() for p in foreign.folder.rglob("*") if p.is_file()}
    command = ["evaluate", "diagnose", "train"][number % 3]
    setting = "resume" if command == "train" else "run"
    outcome = run(command, f"{setting}={foreign.folder}")
    assert outcome.code == 2
    assert "config.yaml: " in outcome.err and outcome.err.count("\n") == 1
    assert foreign.unharmed()
    left = {p: p.read_bytes() for p in foreign.folder.rglob("*") if p.is_file()}
    left.pop(foreign.folder / "train.log", None)
    assert left == before


@pytest.mark.parametrize(
    ("command", "attack"),
    [
        ("train", "torch.load"),
        pytest.param("train", "builtins.open", marks=pytest.mark.campaign),
        ("evaluate", "a planted module"),
        ("diagnose", "os.system"),
    ],
)
def test_real_processes_refuse(tmp_path: Path, command: str, attack: str) -> None:
    foreign = plant(tmp_path, "meta_sinusoid-interrupted", attack)
    setting = "resume" if command == "train" else "run"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{command}.py", f"{setting}={foreign.folder}"],
        cwd=foreign.folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{foreign.folder}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "config.yaml: " in done.stderr and "trust=true" in done.stderr
    assert foreign.unharmed()


def test_the_refusal_names_file_entry_and_way_out(
    planted: Plant,
) -> None:
    foreign = planted("meta_sinusoid-interrupted", "inside the optimiser")
    with pytest.raises(DataError) as refusal:
        load_learner(foreign.folder)
    assert str(refusal.value) == (
        f"{foreign.folder}/config.yaml: optimizer.params._target_='os.system': this is nothing "
        "that a run of metalearn builds there; trust=true (in Python trust=True) builds it all "
        "the same: only for files that you trust"
    )


# --- trust ------------------------------------------------------------------------------------


def own_network(folder: Path) -> str:
    """A module of the user's own, which a run was trained with."""
    (folder / "own_networks.py").write_text(
        "from metalearn.models import MLP\n\ndef network(**settings):\n    return MLP(**settings)\n"
    )
    return "own_networks.network"


def test_what_is_trusted_is_built(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "run"
    target = own_network(tmp_path)
    typed = [f"model._target_={target}", "~model.hidden", "~model.dropout", "~model.init_scale"]
    typed += ["~model.init_bias", "~model.seed", "~model.activation"]
    settings = [s for s in TINY if not s.startswith("model.hidden")]
    outcome = run("train", *settings, *typed, f"hydra.run.dir={folder}")
    if outcome.code:  # settings of a function that takes any are not checked by name
        pytest.fail(outcome.err)
    assert "trust" not in (folder / "config.yaml").read_text()
    for command, setting in (("evaluate", "run"), ("diagnose", "run"), ("train", "resume")):
        outcome = run(command, f"{setting}={folder}")
        assert outcome.code == 2 and f"model._target_='{target}'" in outcome.err
    assert run("evaluate", f"run={folder}", "tasks=4", "trust=true").code == 0
    what = ["what=[gradient_norms]", "tasks=2"]
    assert run("diagnose", f"run={folder}", "trust=true", *what).code == 0
    outcome = run("train", f"resume={folder}", "trust=true", "trainer.steps=6")
    assert outcome.code == 0, outcome.err
    assert "trust" not in (folder / "config.yaml").read_text()
    with pytest.raises(DataError, match=f"model._target_='{target}'"):
        load_learner(folder)
    assert load_learner(folder, trust=True).module is not None


def test_the_attacks_are_attacks(planted: Plant) -> None:
    foreign = planted("meta_sinusoid-interrupted", "a planted module")
    with pytest.raises((DataError, SettingError, TypeError)):
        load_learner(foreign.folder, trust=True)
    assert foreign.canary.exists() and "planted" in sys.modules


@pytest.mark.parametrize("target", ["metalearn.trainers.MetaTrainer", "planted.Thing"])
def test_a_target_typed_for_a_resumed_run_is_free(planted: Plant, run: Run, target: str) -> None:
    foreign = planted("meta_sinusoid-interrupted", "a planted trainer")
    source = yaml.safe_load((SAVED / "meta_sinusoid-interrupted" / "config.yaml").read_text())
    config = yaml.safe_load((foreign.folder / "config.yaml").read_text())
    config["trainer"] = source["trainer"] | {"_target_": "os.system"}
    (foreign.folder / "config.yaml").write_text(yaml.safe_dump(config))
    outcome = run("train", f"resume={foreign.folder}", f"trainer._target_={target}")
    if target.startswith("metalearn"):
        assert outcome.code == 0, outcome.err
        assert foreign.unharmed()
    else:  # as typed: imported, and refused for what it is
        assert outcome.code == 2
        assert foreign.canary.exists()


def test_a_trainer_that_a_file_names_is_not_imported_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    folder = tmp_path / "sent"
    shutil.copytree(SAVED / "meta_sinusoid-interrupted", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["_target_"] = "harmful.Thing"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "harmful.py").write_text("from pathlib import Path\nPath('harm').touch()\n")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for typed in ("metalearn.trainers.MetaTrainer", "metalearn.trainers.PerSampleTrainer"):
        run("train", f"resume={folder}", f"trainer._target_={typed}", "trainer.steps=3")
        assert not (tmp_path / "harm").exists() and "harmful" not in sys.modules


def test_a_second_data_set_typed_for_an_evaluation_is_free(planted: Plant, run: Run) -> None:
    foreign = planted("ensemble-interrupted")
    outcome = run("evaluate", f"run={foreign.folder}", "+ood._target_=planted.digits")
    assert outcome.code == 0, outcome.err
    assert foreign.canary.exists()


@pytest.mark.parametrize("trust", ["maybe", "1", "null", "[]"])
def test_trust_is_true_or_false(run: Run, trust: str) -> None:
    for arguments in (
        ("evaluate", f"run={SAVED / 'meta_sinusoid-finished'}"),
        ("diagnose", f"run={SAVED / 'meta_sinusoid-finished'}"),
    ):
        outcome = run(*arguments, f"trust={trust}")
        assert outcome.code == 2
        assert "trust=" in outcome.err and "true or false is needed" in outcome.err


def test_trust_without_a_file_is_refused(run: Run) -> None:
    outcome = run("train", *TINY, "trust=true")
    assert outcome.code == 2
    assert "trust=True: false is needed: without resume no file is read" in outcome.err


# --- the table --------------------------------------------------------------------------------


def test_the_table_has_what_the_configurations_name() -> None:
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        config = yaml.safe_load(path.read_text())
        if "_target_" in config:
            assert config["_target_"] in TARGETS[path.parent.name], path


@pytest.mark.parametrize("target", sorted({t for group in TARGETS.values() for t in group}))
def test_whatever_is_in_the_table_can_be_imported(target: str) -> None:
    assert callable(get_object(target))


@pytest.mark.parametrize("saved", sorted(SAVED.parent.glob("v*/*/")), ids=lambda p: p.name)
def test_saved_runs_need_no_trust(saved: Path) -> None:
    config = saved_config(saved)
    assert config.trainer._target_ in TARGETS["trainer"]


# --- the other files ---------------------------------------------------------------------------


def as_pickle(path: Path, foreign: Foreign) -> None:
    path.write_bytes(foreign.payload())


def as_checkpoint(path: Path, foreign: Foreign) -> None:
    """A pickle in the place that torch keeps its own in."""
    source = zipfile.ZipFile(path)
    members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, data in members.items():
            changed.writestr(name, foreign.payload() if name.endswith("data.pkl") else data)


def as_script(path: Path, foreign: Foreign) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)


def as_old_checkpoint(path: Path, foreign: Foreign) -> None:
    torch.save({"step": 1}, path, _use_new_zipfile_serialization=False)


def as_class(path: Path, foreign: Foreign) -> None:
    torch.save({"module": torch.nn.Linear(1, 1)}, path)


def as_bomb(path: Path, foreign: Foreign) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as changed:
        changed.writestr("archive/data.pkl", b"\0" * 10_000_000)


def as_device(path: Path, foreign: Foreign) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def as_pipe(path: Path, foreign: Foreign) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        as_pickle, as_checkpoint, as_script, as_old_checkpoint, as_class, as_bomb, as_device,
        as_pipe,
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_checkpoints_are_not_unpickled(planted: Plant, damage: Callable[..., None]) -> None:
    foreign = planted("meta_sinusoid-interrupted")
    damage(foreign.folder / "checkpoints" / "best.pt", foreign)
    with watched() as events, pytest.raises(DataError, match=r"best\.pt"):
        load_learner(foreign.folder)
    assert not any(
        e.startswith(("pickle.find_class os", "pickle.find_class posix")) for e in events
    )
    assert foreign.unharmed()


# --- what a folder writes to -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".lock", "train.log", "metrics.jsonl", "tensorboard", "member_00", "tensorboard/member_1"],
)
@pytest.mark.parametrize("how", ["link", "dangling", "pipe"])
def test_nothing_is_written_through_a_link(planted: Plant, run: Run, name: str, how: str) -> None:
    foreign = planted("meta_sinusoid-interrupted")
    path = foreign.folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(foreign.victim if how == "link" else foreign.canary)
    for command, setting in (("train", "resume"), ("diagnose", "run")):
        outcome = run(command, f"{setting}={foreign.folder}")
        assert outcome.code == 2
        assert f"{name}: a run keeps this itself; it is a link or no file" in outcome.err
    assert foreign.unharmed()
