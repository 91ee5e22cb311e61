"""Diagnostics change nothing, look when they should, cost what they say, survive a stop."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metalearn.errors import SettingError
from metalearn.tracking import RunTracker
from metalearn.trainers import LoopSettings, Trainer
from metalearn.trainers.meta.evaluator import MetaEvaluator
from tests.support.builders import (
    Recorder,
    assert_same,
    batch_of,
    extra_state,
    last,
    signal_in_step,
    state_of,
)
from tests.support.diagnostic_cases import APPLY, MAKERS, few_shot, per_sample
from tests.support.unrendered import without_pixels

COSTS = ("_seconds", "_share")


@pytest.fixture(autouse=True)
def _no_task_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaEvaluator, "_draw", lambda self, *given: None)


@pytest.mark.parametrize(("kind", "name"), APPLY)
def test_the_watched_training_is_the_same_bit_for_bit(kind: str, name: str) -> None:
    seen = Recorder()
    plain = MAKERS[kind](diagnostics=[])
    watched = MAKERS[kind](diagnostics=[name], diagnostics_every=1, tracker=seen)
    plain.fit()
    watched.fit()
    assert_same(state_of(watched), state_of(plain))
    assert seen.steps(f"diagnostics/{name}_seconds") == [1, 2, 3, 4, 5, 6]


def test_buffers_and_dropout_are_left_alone() -> None:
    """A network in which each pass would write running statistics, and draws masks."""
    from metalearn.models import Dropout, Ensemble
    from metalearn.trainers import EnsembleTrainer
    from tests.support.diagnostic_cases import COMMON, blobs

    def make(**settings: Any) -> EnsembleTrainer:
        def network(seed: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), Dropout(0.5), nn.Linear(5, 3)
            )

        members = Ensemble.from_factory(network, [0, 1])
        settings = {**COMMON, "batch_size": 8, "engine": "batched", **settings}
        return EnsembleTrainer(members, blobs(), **settings)

    plain, watched = make(), make(diagnostics=["gradient_norms"], diagnostics_every=1)
    plain.fit()
    watched.fit()
    assert_same(state_of(watched), state_of(plain))
    with pytest.raises(SettingError, match=r"noise_scale'.*BatchNorm1d .* normalises with stat"):
        make(diagnostics=["noise_scale"])


def test_cadence() -> None:
    seen = Recorder()
    per_sample(diagnostics=["gradient_norms"], diagnostics_every=4, tracker=seen, steps=9).fit()
    assert seen.steps("gradient_norms/sample_median") == [1, 4, 8]


def test_costs_are_recorded_and_shares_add_up() -> None:
    seen = Recorder()
    names = ["gradient_norms", "noise_scale", "fisher_trace"]
    per_sample(diagnostics=names, diagnostics_every=2, tracker=seen).fit()
    for name in names:
        assert all(s > 0 for s in seen.series(f"diagnostics/{name}_seconds"))
    assert 0 < sum(seen.series(f"diagnostics/{name}_share")[-1] for name in names) < 1


def _records(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.endswith(COSTS) and k[:5] not in ("time", "speed")}
        for row in rows
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_resumed_run_remembers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pixels(monkeypatch)
    names = [name for made, name in APPLY if made == kind]
    every: dict[str, Any] = {"diagnostics": names, "diagnostics_every": 2}

    def run(folder: Path, stop: int | None) -> Trainer:
        trainer = MAKERS[kind](folder=folder, **every)
        if last(folder).is_file():
            trainer.resume(last(folder))
        start = trainer.step or None
        trainer.tracker = RunTracker(folder, resume_step=start)
        if stop is not None:
            signal_in_step(trainer, stop, signal.SIGTERM)
        trainer.fit()
        trainer.tracker.close()
        return trainer

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "parts", 3)
    parts = run(tmp_path / "parts", None)
    assert_same(_records(tmp_path / "parts"), _records(tmp_path / "whole"))
    one, other = (extra_state(t)["diagnostics"] for t in (parts, whole))
    assert_same(one, other)
    assert one["noise_scale"]["history"]


def test_figures_come_with_validations() -> None:
    seen = Recorder()
    names = ["gradient_norms", "noise_scale", "gradient_cosines"]
    few_shot(diagnostics=names, diagnostics_every=2, tracker=seen).fit()
    drawn = {name for step, name, _ in seen.drawn if step == 6}
    wanted = {"gradient_norms/task_bands", "gradient_norms/shot_bands", "gradient_cosines/task"}
    assert wanted | {"noise_scale/over_training"} <= drawn
    bands = next(f for s, n, f in seen.drawn if (s, n) == (6, "gradient_norms/shot_bands"))
    labels = [text.get_text() for text in bands.legends[0].get_texts()]
    assert "median of 24 shots" in labels
    assert any(name == "gradient_norms" for _, name, _ in seen.distributions)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["noise"], "^diagnostics='noise': known are gradient_norms, gradient_variance, noise_sc"),
        (["noise_scales"], "did you mean noise_scale\\?$"),
        ("noise_scale", "^diagnostics='noise_scale': a list of names is needed$"),
        (["noise_scale"] * 2, "each name once is accepted$"),
    ],
)
def test_unknown_names(names: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LoopSettings(diagnostics=names)


def test_a_diagnostic_that_has_nothing_to_see() -> None:
    message = r"^diagnostics='gradient_cosines': .*\(this trainer has no gradients of task"
    with pytest.raises(SettingError, match=message):
        per_sample(diagnostics=["gradient_cosines"])


def test_a_part_that_cannot_be_seen_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    seen = Recorder()
    trainer = few_shot(model=model, diagnostics=["noise_scale"], tracker=seen, steps=1)
    assert "noise_scale leaves out shot: BatchNorm1d 2 normalises with" in caplog.text
    trainer.fit()
    assert seen.series("noise_scale/task") and not seen.series("noise_scale/shot")
    with pytest.raises(SettingError, match="fisher_trace': it has nothing to see .*GroupNorm"):
        few_shot(model=model, diagnostics=["fisher_trace"])


def test_members_of_several_architectures_are_refused() -> None:
    from metalearn.models import MLP, Ensemble
    from metalearn.trainers import EnsembleTrainer
    from tests.support.diagnostic_cases import blobs

    members = Ensemble.from_modules([MLP((4,), 3, hidden=(5,)), MLP((4,), 3, hidden=(6,))])
    with pytest.raises(SettingError, match="members of one architecture are needed"):
        EnsembleTrainer(members, blobs(), batch_size=8, diagnostics=["noise_scale"])


# --- what is not finite, what is shared ---------------------------------------------------------


def test_a_step_that_is_not_finite_is_counted_before_it_is_refused() -> None:
    from metalearn.errors import NonFiniteError

    seen = Recorder()
    trainer = per_sample(diagnostics=["gradient_norms"], tracker=seen)
    with torch.no_grad():
        next(trainer.module.parameters())[0, 0] = torch.inf
    trainer.loop.validation_due = False  # without the validation that comes first
    with pytest.raises(NonFiniteError):
        trainer.fit()
    reached = batch_of(trainer, 0)[0][:, 0] > 0  # the others stay at the flat end of a ReLU
    assert 0 < reached.sum() < 8
    assert seen.series("gradient_norms/sample_non_finite") == [float(reached.sum())]


def test_members_that_share_weights() -> None:
    from metalearn.models import MLP, Ensemble
    from metalearn.trainers import BatchEnsembleTrainer
    from tests.support.diagnostic_cases import COMMON, blobs

    def make(**settings: Any) -> Trainer:
        one = Ensemble.from_modules([MLP((4,), 3, hidden=(5,))])
        settings = {**COMMON, "members": 2, "batch_size": 8, "engine": "batched", **settings}
        return BatchEnsembleTrainer(one, blobs(), **settings)

    plain, watched = make(), make(diagnostics=["noise_scale"], diagnostics_every=1)
    plain.fit()
    watched.fit()
    assert_same(state_of(watched), state_of(plain))
    with pytest.raises(SettingError, match="members that share weights do not predict apart"):
        make(diagnostics=["fisher_trace"])
