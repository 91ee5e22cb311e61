"""Runs of earlier commits load, score what they scored, and go on as they would have gone on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.cli import load_ensemble, load_learner, load_module
from tests.saved_runs.double import copy_of, float64, scores, spent, states, trainer_at
from tests.saved_runs.make import ADDED
from tests.support.commands import Outcome
from tests.support.unrendered import without_pixels

HERE = Path(__file__).parent
SAVED = sorted(p.parent for p in HERE.glob("v*/*/config.yaml"))
INTERRUPTED = [p for p in SAVED if p.name.endswith("-interrupted")]

saved_runs = pytest.mark.parametrize("saved", SAVED, ids=lambda p: f"{p.parent.name}-{p.name}")
interrupted_runs = pytest.mark.parametrize(
    "saved", INTERRUPTED, ids=lambda p: f"{p.parent.name}-{p.name}"
)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return copy_of(saved, tmp_path / "run")


@pytest.fixture
def expected(saved: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(saved / "expected.pt", weights_only=True)
    return found


def assert_close(found: Any, wanted: Any, tolerance: float, where: str = "") -> None:
    """Numbers within a relative tolerance, all else equal."""
    if isinstance(wanted, dict):
        assert set(wanted) <= set(found), where  # later commits may say more
        for key, value in wanted.items():
            assert_close(found[key], value, tolerance, f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for index, value in enumerate(wanted):
            assert_close(found[index], value, tolerance, f"{where}/{index}")
    elif isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, msg=where)
    elif isinstance(wanted, float):
        near = pytest.approx(wanted, rel=tolerance, abs=tolerance, nan_ok=True)
        assert found == near, (where, found, wanted)
    else:
        assert found == wanted, (where, found, wanted)


def test_every_trainer_and_learner_is_among_them() -> None:
    kinds = {"v1": ["meta_sinusoid", "meta_mixed_adamw", "meta_members", "meta_pictures"]}
    kinds["v1"] += ["ensemble", "per_sample", "mc_dropout", "batch_ensemble", "snapshot", "swag"]
    kinds["v2"] = ["meta_protonet", "meta_protonet_members", "meta_fomaml", "meta_multi_step"]
    kinds["v3"] = ["regression", "regression_swag", "per_sample_regression"]
    kinds["v4"] = ["meta_learnt_rates", "meta_learnt_members"]
    kinds["v5"] = ["meta_sgd_members", "meta_cavia", "meta_mamlpp", "meta_anil_running"]
    kinds["v5"] += ["meta_protomaml", "meta_r2d2", "meta_rfs"]
    kinds["v6"] = ["private", "private_secure"]
    kinds["v7"] = ["private_quantile", "private_bands", "private_growth", "meta_private"]
    assert {version: list(runs) for version, runs in ADDED.items()} == kinds
    ends = ("finished", "interrupted")
    wanted = {f"{v}/{kind}-{end}" for v in kinds for kind in kinds[v] for end in ends}
    assert {f"{p.parent.name}/{p.name}" for p in SAVED} == wanted


@saved_runs
def test_the_state_is_loaded_as_it_was_saved(folder: Path) -> None:
    for checkpoint in ("best", "last"):
        saved = torch.load(folder / "checkpoints" / f"{checkpoint}.pt", weights_only=True)
        trainer = trainer_at(folder, checkpoint)
        found = states(trainer)
        wanted = {"state": saved["module"]} | {n: saved[n] for n in saved if n == "learnt"}
        assert found.keys() == wanted.keys()
        for part, state in found.items():
            assert state.keys() == wanted[part].keys()
            for name, value in wanted[part].items():
                assert torch.equal(state[name], value), name
        assert trainer.step == saved["step"]


@saved_runs
def test_scores_are_what_they_were(folder: Path, expected: dict[str, Any]) -> None:
    with float64():
        for checkpoint in ("best", "last"):
            trainer = trainer_at(folder, checkpoint)
            assert trainer.step == expected[checkpoint]["step"]
            assert_close(scores(trainer), expected[checkpoint]["scores"], 1e-6)


@interrupted_runs
def test_twenty_more_steps_lead_where_they_led(folder: Path, expected: dict[str, Any]) -> None:
    with float64():
        trainer = trainer_at(folder, "last")
        assert trainer.step == 20
        trainer.fit()
        assert trainer.step == expected["after"]["step"] == 40
        if _is_secure(folder):  # leads elsewhere each time
            return
        wanted = {n: v for n, v in expected["after"].items() if n in ("state", "learnt")}
        assert_close(states(trainer), wanted, 1e-10)
        assert_close(scores(trainer), expected["after"]["scores"], 1e-6)
        trainer.load_best()
        assert trainer.best_step == expected["after_best"]["step"]
        assert_close(trainer.best_value, expected["after_best"]["value"], 1e-6)


@saved_runs
def test_what_was_spent_is_known_and_grows(saved: Path, folder: Path, expected: Any) -> None:
    if not (folder / "privacy.jsonl").exists():
        pytest.skip("not private")
    for checkpoint in ("best", "last"):
        trainer = trainer_at(folder, checkpoint)
        assert_close(spent(trainer), expected[checkpoint]["privacy"], 1e-6)
    if saved in INTERRUPTED:
        trainer.fit()
        assert_close(spent(trainer), expected["after"]["privacy"], 1e-6)


@saved_runs
def test_the_commands_take_them(
    saved: Path, folder: Path, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pixels(monkeypatch)
    meta = saved.name.startswith("meta")
    outcome = run("evaluate", f"run={folder}", *(["tasks=12"] if meta else []))
    assert outcome.code == 0, outcome.err
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    outcome = run("train", f"resume={folder}")
    assert outcome.code == 0, outcome.err
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == 40
    before = saved.with_name(saved.name.replace("interrupted", "finished")) / "results.json"
    wanted = json.loads(before.read_text())
    assert results["best_step"] == wanted["best_step"]
    if not _is_secure(folder):
        assert_close(results["test"], wanted["test"], 1e-3)


@saved_runs
def test_loaders_give_something_to_call(folder: Path, saved: Path) -> None:
    if saved.name.startswith("meta"):
        learner = load_learner(folder)
        pictures = learner.kind == "classification"
        shape = (4, 1, 16, 16) if pictures else (4, 1)
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        y = torch.tensor([0, 1, 0, 1]) if pictures else x.sin()
        adapted = learner.adapt((x, y))
        assert isinstance(adapted, nn.Module)
        assert torch.isfinite(adapted(x)).all()
        return
    waves = "regression" in saved.name
    x = torch.rand((5, 1) if waves else (5, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    if saved.name.startswith(("per_sample", "private")):
        assert load_module(folder)(x).shape == (5, 1 if waves else 10)
    else:
        model = load_ensemble(folder)
        outputs = {"regression": 4, "regression_swag": 2}.get(saved.name.rpartition("-")[0], 10)
        assert model(x).shape == (len(model), 5, outputs)


def _is_secure(folder: Path) -> bool:
    """Whether its noise is another one each time."""
    return "noise: secure" in (folder / "config.yaml").read_text()
