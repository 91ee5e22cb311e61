"""What a sweep over seeds comes to."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from metalearn.cli.command_table import Command
from metalearn.cli.comparison.sweeps import summarize_sweep
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.commands import TINY, Outcome


def write_run(place: Path, seed: int, value: float, **settings: Any) -> None:
    place.mkdir(parents=True)
    config = {
        "seed": seed,
        "device": "cpu",
        "test_tasks": 4,
        "task": {"_target_": "metalearn.tasks.SinusoidTasks", "seed": seed, "way": 5},
        "maml": {"_target_": "metalearn.trainers.MAML"},
        **{name: {"_target_": name} for name in ("trainer", "model", "optimizer")},
    }
    for name, values in settings.items():
        config[name] = {**config.get(name, {}), **values}  # type: ignore[dict-item]
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    headline = {"best/accuracy": value / 2, "test/accuracy": value}
    (place / "results.json").write_text(json.dumps({"steps": 3, "headline": headline}))


def test_runs_that_differ_in_their_seed_alone_are_taken_together(tmp_path: Path) -> None:
    for number, (seed, rate) in enumerate([(0, 0.1), (0, 0.4), (1, 0.1), (1, 0.4), (2, 0.1)]):
        write_run(tmp_path / str(number), seed, rate + seed / 10, maml={"inner_lr": rate})
    (tmp_path / "9").mkdir()  # a run that has not begun
    text = "\n".join(summarize_sweep(tmp_path).lines)
    second, first = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert first["settings"] == {"maml.inner_lr": 0.1} and first["seeds"] == [0, 1, 2]
    assert second["runs"] == ["1", "3"] and second["settings"] == {"maml.inner_lr": 0.4}
    accuracy = first["numbers"]["test/accuracy"]
    assert accuracy["values"] == pytest.approx([0.1, 0.2, 0.3])
    assert accuracy["mean"] == pytest.approx(0.2)
    assert accuracy["deviation"] == pytest.approx(0.1)
    assert accuracy["interval95"] == pytest.approx(4.3027 * 0.1 / 3**0.5)
    row = next(line for line in text.splitlines() if line.startswith("2  "))
    numbers = ["10.0", "%", "±", "12.4", "%", "20.0", "%", "±", "24.8", "%"]
    assert row.split() == ["2", "0.1", "0,", "1,", "2", *numbers, "0,", "2,", "4"]
    assert "order of best/accuracy (validation), the highest first" in text
    assert text.startswith("5 runs; over seeds")
    assert text.endswith(f"written: {tmp_path / 'sweep.json'}, .csv, .md and .png")
    assert all((tmp_path / f"sweep.{ending}").stat().st_size for ending in ("csv", "md", "png"))


def test_runs_are_named_as_they_were_typed(tmp_path: Path) -> None:
    """Whatever else a choice brings with it."""
    typed = {}
    for number, (seed, learner) in enumerate([(0, "maml"), (1, "maml"), (0, "protonet")]):
        write_run(tmp_path / str(number), seed, 0.5, learner={"_target_": learner, "features": 1})
        typed[str(number)] = ["task.way=5", f"learner={learner}", f"seed={seed}"]
    lines = summarize_sweep(tmp_path, typed).lines
    found = json.loads((tmp_path / "sweep.json").read_text())["groups"]
    assert [group["settings"] for group in found] == [{"learner": "maml"}, {"learner": "protonet"}]
    assert any(line.split()[:4] == ["1", "maml", "0,", "1"] for line in lines), lines
    assert any(line.split()[:3] == ["2", "protonet", "0"] for line in lines)


def test_scores_on_other_tasks_do_not_order_runs(tmp_path: Path) -> None:
    """Whatever was typed to bring that about, such as an experiment."""
    typed = {}
    for number, way in enumerate([5, 20]):
        write_run(tmp_path / str(number), 0, 0.5 + way / 100, task={"way": way})
        typed[str(number)] = [f"experiment=of_{way}"]
    text = "\n".join(summarize_sweep(tmp_path, typed).lines)
    assert "in the order in which they were found: their tasks or data differ" in text


def test_runs_of_one_seed_stand_side_by_side(tmp_path: Path) -> None:
    for number, rate in enumerate([0.1, 0.4]):
        write_run(tmp_path / str(number), 0, rate, maml={"inner_lr": rate})
    lines = summarize_sweep(tmp_path).lines
    assert lines[0] == "2 runs"
    assert [line.split() for line in lines if line[:1].isdigit()][1:] == [
        ["1", "0.4", "0", "20.0", "%", "40.0", "%", "1"],
        ["2", "0.1", "0", "5.0", "%", "10.0", "%", "0"],
    ]


@pytest.mark.parametrize("spoil", ["one run", "no results", "damaged", "none finished"])
def test_a_sweep_says_what_there_is(spoil: str, tmp_path: Path) -> None:
    write_run(tmp_path / "0", 0, 0.5)
    if spoil != "one run":
        write_run(tmp_path / "1", 1, 0.6)
    if spoil in ("no results", "none finished"):
        (tmp_path / "1" / "results.json").unlink()
    if spoil == "none finished":
        (tmp_path / "0" / "results.json").unlink()
    if spoil == "damaged":
        (tmp_path / "1" / "results.json").write_text("[1, 2")
    lines, failed = summarize_sweep(tmp_path)
    found = json.loads((tmp_path / "sweep.json").read_text())
    states = {run: group["state"] for group in found["groups"] for run in group["runs"]}
    cut = "not finished: no step recorded"
    assert (
        states
        == {
            "one run": {"0": "finished"},
            "no results": {"0": "finished", "1": cut},
            "damaged": {"0": "finished"},
            "none finished": {"0": cut, "1": cut},
        }[spoil]
    )
    assert any(line.startswith("Passed over: 1: results.json") for line in lines) == (
        spoil == "damaged"
    )
    assert (failed is not None) == (spoil == "none finished")
    assert failed is None or "no run of this sweep is finished" in failed
    assert summarize_sweep(tmp_path / "nowhere") == ([], None)


def test_a_sweep_over_seeds_ends_with_its_table(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda *given: None)
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)  # asks git: slow
    given = [*TINY, "trainer.steps=1", "maml.engine=vmap", "hydra.sweep.dir=sweep"]
    outcome = run("train", "-m", "seed=0,3", *given)
    assert outcome.code == 0, outcome.err
    (found,) = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["groups"]
    assert found["seeds"] == [0, 3] and found["settings"] == {}
    for name, number in found["numbers"].items():
        each = [
            json.loads((tmp_path / "sweep" / place / "results.json").read_text())["headline"][name]
            for place in ("0", "1")
        ]
        assert number["values"] == each and number["mean"] == pytest.approx(fmean(each))
    assert set(found["numbers"]) == {"best/loss_after", "test/loss"}
    assert "2 runs; over seeds" in outcome.out and "There is one row." in outcome.out


# --- as one stack

SMALL = [
    "trainer=ensemble", "data=digits", "data.seed=0", "model.hidden=[4]", "trainer.steps=3",
    "trainer.eval_every=3", "trainer.progress=false", "trainer.compile=never",
    "trainer.engine=batched",
]  # fmt: skip


def test_runs_that_could_be_members_are_those_members(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)
    swept = ["trainer.members=1", "optimizer.lr=0.1,0.01"]
    several = run("train", "-m", *SMALL, *swept, "seed=3,5", "hydra.sweep.dir=several")
    assert several.code == 0, several.err
    (said,) = [line for line in several.out.splitlines() if "can be trained as one" in line]
    command = shlex.split(said.partition("each as a member: ")[2])
    assert command[:2] == ["python", "scripts/train.py"] and several.out.startswith(said)
    one = run("train", *command[2:], "hydra.run.dir=one")
    assert one.code == 0, one.err
    members = json.loads((tmp_path / "one" / "results.json").read_text())["test"]["test"]["members"]
    alone = [
        json.loads((tmp_path / "several" / str(number) / "results.json").read_text())["test"]
        for number in range(4)
    ]
    assert len(members) == 4 and len({member["nll"] for member in members}) == 4
    for member, single in zip(members, alone):
        assert member == pytest.approx(single["test"]["members"][0], rel=1e-4)


def test_a_sweep_is_trained_as_one_stack_on_request(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("metalearn.cli.commands.train.provenance", dict)
    swept = ["trainer.members=1", "optimizer.lr=0.1,0.01", "seed=3,5"]
    stacked = run("train", "-m", *SMALL, *swept, "sweep=stacked", "hydra.sweep.dir=stacked")
    assert stacked.code == 0, stacked.err
    (said,) = [line for line in stacked.out.splitlines() if "are trained as one" in line]
    command = shlex.split(said.partition("each as a member: ")[2])
    assert not any(word.startswith("sweep") for word in command)  # it is no sweep
    assert one_stack_of_a_folder_of_ones_own(run, tmp_path) == 0
    typed = run("train", *command[2:], "hydra.run.dir=typed")
    assert typed.code == 0, typed.err
    found, expected = (
        json.loads((tmp_path / folder / "results.json").read_text())
        for folder in ("stacked/0", "typed")
    )
    assert len(found["sweep"]["members"]) == 4
    for name in ("sweep", "test", "headline"):
        assert found[name] == expected[name]
    assert not (tmp_path / "stacked" / "1").exists()
    assert "winner by validation" in stacked.out and (tmp_path / "stacked" / "sweep.json").is_file()


def one_stack_of_a_folder_of_ones_own(run: Callable[..., Outcome], folder: Path) -> int:
    (folder / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ntrainer:\n  steps: 2\n"
    (folder / "own" / "experiment" / "mine.yaml").write_text(text)
    words = ["trainer.members=1", "seed=3,5", "sweep=stacked", "experiment=mine"]
    small = [word for word in SMALL if not word.startswith(("trainer.steps", "trainer.eval"))]
    return run("train", "--config-dir", str(folder / "own"), "-m", *small, *words).code


GRID = ["-m", "trainer=ensemble", "trainer.members=1", "sweep=stacked"]


@pytest.mark.parametrize(
    ("words", "accepted"),
    [
        (["sweep=stacked"], "-m is needed"),
        (["sweep=both"], "separate or stacked is needed"),
        (["-m", "sweep=both", "seed=0,1"], "separate or stacked is needed"),
        (["-m", "sweep=stacked", "seed=0,1"], "trainer=ensemble trainer.members=1 are needed"),
        ([*GRID, "trainer.steps=3,4"], "that differ in seed and in lr"),
        (GRID, "at least two runs are needed"),
        ([*GRID[:3], "seed=0,1", "sweep=stacked,separate"], "one value for all runs"),
        ([*GRID, "seed=0,1", "hydra/sweeper=optuna"], "by Hydra's own sweeper"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, that optuna uses
def test_what_cannot_be_one_stack_is_refused(
    words: list[str], accepted: str, run: Callable[..., Outcome], tmp_path: Path
) -> None:
    if "hydra/sweeper=optuna" in words:
        pytest.importorskip("optuna")
    outcome = run("train", *words)
    assert outcome.code == 2 and "error: sweep='" in outcome.err and accepted in outcome.err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "stacks"),
    [
        (["trainer.members=1", "optimizer.lr=0.1,0.01"], True),
        (["trainer.members=1", "trainer.lr=0.1,0.01", "+optimizer.weight_decay=0,0.1"], True),
        (["trainer.members=1", "seed=0,1"], True),
        (["trainer.members=1", "seed=0,1", "data.seed=${seed}"], False),  # other data
        (["trainer.members=1", "seed=0,1", "trainer.shuffle=shared"], False),  # another order
        (["trainer.members=1", "optimizer.lr=0.1,0.01", "trainer.steps=3,4"], False),
        (["trainer.members=1", "optimizer.lr=0.1"], False),  # one run
        (["trainer.members=2", "optimizer.lr=0.1,0.01"], False),  # ensembles of their own
        (["trainer.members=1", "seed=0,1", "data.member_weights={leave_out:0.1}"], False),
        (["trainer.members=1", "trainer.dropout=null,0.1"], False),  # null is the model's own
        (["trainer.members=1", "optimizer.lr=0.1,0.01", "trainer.dropout=[0.1]"], False),
        (["trainer=per_sample", "optimizer.lr=0.1,0.01"], False),
    ],
)  # fmt: skip
def test_which_sweeps_could_be_one_stack(
    words: list[str], stacks: bool, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(given: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Command, "function", lambda self: stop)
    small = SMALL[:-1] if "trainer=per_sample" in words else SMALL
    outcome = run("train", "-m", *small, *words)
    assert outcome.code == 0, outcome.err
    assert ("can be trained as one" in outcome.out) == stacks
