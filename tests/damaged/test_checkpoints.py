"""A checkpoint that is damaged, or of something else, is one sentence, and nothing is loaded of it.

Every entry of every trainer's state is replaced by all sorts of things: it is refused, or what is
accepted trains on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.checkpoint import load_checkpoint
from metalearn.cli import load_ensemble, load_learner, load_module
from metalearn.cli.loading import trainer_of
from metalearn.cli.run_config import saved_config
from metalearn.errors import DataError, NonFiniteError
from metalearn.trainers.members.trained import trained_state
from tests.saved_runs.double import copy_of
from tests.support.builders import assert_same, extra_state
from tests.support.commands import Outcome
from tests.support.damage import FILES, REPLACEMENTS, Path_, entries, replaced, saved, without

SAVED = Path(__file__).parents[1] / "saved_runs"
RUNS = {  # the state of every trainer and learner, where it stopped
    path.name.removesuffix("-interrupted"): path for path in sorted(SAVED.glob("v*/*-interrupted"))
}
TRAINERS: dict[str, Any] = {}
HARMLESS = [FILES[name] for name in ("doubled", "a bit at 80%", "a bit at 100%")]


@cache
def state_of(kind: str) -> dict[str, Any]:
    path = RUNS[kind] / "checkpoints" / "last.pt"
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


def fresh_trainer(kind: str, folder: Path) -> Any:
    """The trainer of a copy, which has the pictures that some runs need."""
    copied = copy_of(RUNS[kind], folder / "run")
    return trainer_of(copied, saved_config(copied), "last", "cpu")


def trainer_at(kind: str, folder: Path) -> Any:
    """One for all tests, made in the folder of the first."""
    if kind not in TRAINERS:
        TRAINERS[kind] = fresh_trainer(kind, folder)
    return TRAINERS[kind]


def trained(trainer: Any) -> Any:
    return trained_state(trainer.module, trainer.loop.beside)


def snapshot(trainer: Any) -> Any:
    return copy.deepcopy(
        (
            dict(trained(trainer)), trainer.optimizer.state_dict(), trainer.step,
            trainer.loop.population.summary(), extra_state(trainer),
        )
    )  # fmt: skip


def take_note(trainer: Any) -> None:
    """Validate once more, from a best state that is known."""
    population = trainer.loop.population
    population.best = population.best or copy.deepcopy(trained(trainer))
    population.record_validation(trainer.loop.evaluator(trainer.step).scores, trainer.step)


def held(kind: str, state: Any, folder: Path) -> str:
    """``"refused"`` in a sentence and nothing is loaded, or ``"accepted"`` and it trains on."""
    path = folder / "last.pt"
    path.write_bytes(saved(state))
    trainer = trainer_at(kind, folder)
    before = snapshot(trainer)
    try:
        trainer.resume(path)
    except DataError as error:
        text = str(error)
        assert (
            text.startswith(f"{path}: ") and "\n" not in text and len(text) < 600 + len(str(path))
        )
        if "not finite" not in text:
            assert_same(snapshot(trainer), before)
        return "refused"
    try:
        trainer.gradient(trainer.step)
        trainer.validate()
        trainer.optimizer.step()
        take_note(trainer)
        extra_state(trainer)
    except NonFiniteError:
        pass
    finally:
        if "privacy" in extra_state(trainer):  # its steps are reserved: it takes no other run
            del TRAINERS[kind]
        else:
            good = folder / "good.pt"
            good.write_bytes(saved(state_of(kind)))
            trainer.resume(good)
    return "accepted"


def cases(kind: str) -> list[tuple[str, Path_, str]]:
    """All entries of a kind of run, with each of the replacements, and without."""
    return [
        (kind, path, name)
        for path in entries(state_of(kind))
        for name in (*REPLACEMENTS, "missing")
    ]


ALL = [case for kind in RUNS for case in cases(kind)]
FEW = ALL[::89]


def damaged(kind: str, path: Path_, name: str) -> Any:
    state = state_of(kind)
    return without(state, path) if name == "missing" else replaced(state, path, REPLACEMENTS[name])


def shown(case: tuple[str, Path_, str]) -> str:
    return f"{case[0]}-{'.'.join(map(str, case[1]))}-{case[2]}"


@pytest.mark.parametrize("case", FEW, ids=shown)
def test_an_entry_that_is_something_else(case: tuple[str, Path_, str], tmp_path: Path) -> None:
    held(case[0], damaged(*case), tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", RUNS)
def test_every_entry_that_is_something_else(kind: str, tmp_path: Path) -> None:
    found = {"refused": 0, "accepted": 0}
    for case in cases(kind):
        try:
            found[held(kind, damaged(*case), tmp_path)] += 1
        except Exception as error:
            raise AssertionError(shown(case)) from error
    print(kind, found)
    assert found["refused"] > 3 * found["accepted"]


STATES: dict[str, tuple[Path_, Any, str]] = {
    "a step as text": (("step",), "7", r"step is '7', but a whole number of at least 0 is needed"),
    "a step below zero": (("step",), -1, "step is -1, but a whole number of at least 0"),
    "a step beyond 64 bits": (("step",), 2**63, "step is 9223372036854775808, but"),
    "no optimiser": (("optimizer",), None, "optimizer is None, but a mapping is needed"),
    "a best step to come": (("best_step",), 999, "best_step is 999, but at most step=20"),
    "a module as a list": (("module",), [1], "module is a list, but a mapping"),
    "extra as a tensor": (
        ("extra",),
        torch.zeros(2),
        r"extra is float32 of shape \[2\], but a map",
    ),
    "diagnostics as text": (("diagnostics",), "x", "diagnostics is 'x', but a mapping"),
    "a long text": (("stale",), "x" * 10**6, "stale is 'xxx.*…, but a whole number"),
    "a version to come": (("version",), 2, "checkpoint version 2 is not known here"),
    "a deep step": (("step",), REPLACEMENTS["deep"], "step is a list, but a whole number"),
}


@pytest.mark.parametrize("case", STATES.values(), ids=STATES)
def test_the_sentence_says_what_is_wrong(case: tuple[Path_, Any, str], tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(saved(replaced(state_of("ensemble"), case[0], case[1])))
    with pytest.raises(DataError, match=case[2]):
        trainer_at("ensemble", tmp_path).resume(path)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path, state = tmp_path / "last.pt", copy.deepcopy(state_of("ensemble"))
    name = next(name for name in state["module"] if name.endswith("weight"))
    state["module"][name][1, 0, 0] = torch.nan
    path.write_bytes(saved(state))
    trainer = fresh_trainer("ensemble", tmp_path)
    with pytest.raises(DataError, match="member 1 of this checkpoint has weights that are not fin"):
        trainer.resume(path)
    state = copy.deepcopy(state_of("per_sample"))
    next(iter(state["module"].values())).fill_(torch.inf)
    path.write_bytes(saved(state))
    trainer = fresh_trainer("per_sample", tmp_path / "other")
    with pytest.raises(DataError, match="the module of this checkpoint has weights that are not"):
        trainer.resume(path)


@pytest.mark.parametrize("how", FILES.values(), ids=FILES)
def test_a_damaged_file_is_refused(how: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(how((RUNS["meta_sinusoid"] / "checkpoints" / "last.pt").read_bytes()))
    trainer = trainer_at("meta_sinusoid", tmp_path)
    before = snapshot(trainer)
    if how in HARMLESS:  # what is read is whole
        assert_same(load_checkpoint(path), state_of("meta_sinusoid"))
        return
    with pytest.raises(DataError, match="checkpoint") as caught:
        trainer.resume(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert_same(snapshot(trainer), before)


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a run but for the log and the lock, which a command opens before it reads."""
    ours = ("train.log", ".lock")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ours
    }


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize("kind", ["meta_sinusoid", "ensemble", "per_sample"])
def test_every_entry_point_says_so_and_writes_nothing(
    kind: str, name: str, tmp_path: Path, run: Callable[..., Outcome]
) -> None:
    folder = copy_of(RUNS[kind], tmp_path / "run")
    path = folder / "checkpoints" / f"{name}.pt"
    state = torch.load(path, weights_only=True)
    load = {"meta_sinusoid": load_learner, "ensemble": load_ensemble, "per_sample": load_module}
    for content in (saved(replaced(state, ("module",), {"a": "b"})), b"nothing"):
        path.write_bytes(content)
        before = contents(folder)
        commands = [("train", f"resume={folder}")]
        commands += [(s, f"run={folder}", f"checkpoint={name}") for s in ("evaluate", "diagnose")]
        for script, *arguments in commands:
            outcome = run(script, *arguments)
            assert outcome.code == 2, (script, outcome.out, outcome.err)
            assert outcome.err.count("\n") == 1 and str(path) in outcome.err, outcome.err
        with pytest.raises(DataError, match=rf"{name}\.pt: "):
            load[kind](folder, checkpoint=name)
        assert contents(folder) == before
