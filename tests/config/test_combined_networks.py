"""Finished runs of single networks as one ensemble, and what private ones have cost together.

Axes: M networks, N samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn import combine
from metalearn.cli.combined_privacy import combined_privacy
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.privacy import PrivacyLedger, SampledGaussian, privacy_spent
from metalearn.trainers import PrivateTrainer
from tests.support.builders import ensemble_trainer
from tests.support.commands import Outcome
from tests.support.diagnostic_cases import COMMON, blobs, per_sample


def private(seed: int, **settings: Any) -> PrivateTrainer:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    given: Any = {**COMMON, "batch_size": 8, "noise_multiplier": 1.0, "clip": None, "reserve": 1}
    given |= settings
    return PrivateTrainer(MLP((4,), 3, hidden=(5,), seed=seed), given.pop("data", blobs()), **given)


def test_networks_predict_together() -> None:
    several = [per_sample(model=MLP((4,), 3, hidden=(5,), seed=seed)) for seed in range(3)]
    found: Any = combine(several)
    x, y = several[0].data.part("test")
    logits = torch.cat([trainer.predict(x) for trainer in several])
    torch.testing.assert_close(found.predict(x), logits)
    assert found.members == [0, 1, 2]
    report = found.reports()["test"]
    right = logits.softmax(-1).mean(0).argmax(-1) == y
    assert report.report.ensemble()["accuracy"] == pytest.approx(float(right.double().mean()))
    assert report.temperature is not None and len(report.member_headlines()) == 3


def test_the_validation_split_is_read_where_all_of_them_may() -> None:
    open_one, closed = private(0, validation="public"), private(1)
    found: Any = combine([open_one, private(1, validation="public")])
    assert found.reports()["test"].temperature is not None
    found = combine([open_one, closed])
    assert found.reports()["test"].temperature is None and found.data_checksum is None


def test_networks_of_other_data_and_other_kinds_are_refused() -> None:
    data, other = blobs(), blobs()
    other.inputs[0, 0] += 1
    with pytest.raises(SettingError, match="the same data in the same parts are needed"):
        combine([private(0, data=data), private(1, data=other)])
    with pytest.raises(SettingError, match="run='PerSampleTrainer': runs on tasks, or runs of ens"):
        combine([ensemble_trainer(), per_sample()])
    with pytest.raises(SettingError, match="at least two runs are needed"):
        combine([per_sample()])


def test_what_private_runs_have_cost_together(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    several = [private(seed, folder=folder, delta=1e-3, noise_multiplier=1.0 + seed)
               for seed, folder in enumerate(folders)]  # fmt: skip
    for trainer in several:
        trainer.fit()
    several[1].gradient(0)  # a step more, which is in no checkpoint
    size, steps = several[0].data.size("train"), several[0].settings.steps
    made = [SampledGaussian("poisson", size, 8, sigma) for sigma in (1.0, 2.0)]
    wanted = privacy_spent([(made[0], steps), (made[1], steps + 1)], 1e-3)
    reopened = []
    for seed, folder in enumerate(folders):
        trainer = private(seed, delta=1e-3, noise_multiplier=1.0 + seed)
        trainer.resume(folder / "checkpoints" / "best.pt")
        reopened.append(trainer)
    entry, lines = combined_privacy(folders, reopened)
    assert entry["privacy"]["epsilon"] == wanted.epsilon and entry["privacy"]["runs"] == 2
    assert lines == [f"privacy: {wanted}, of all 2 runs together"]
    entry, lines = combined_privacy(
        [tmp_path / "gone"] * 2, reopened
    )  # checkpoints know too little
    assert entry == {"privacy": {"epsilon": None}}
    assert "privacy.jsonl, which is not there or another one" in lines[0]


def test_a_ledger_that_is_elsewhere_is_neither_made_nor_taken_for_that_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means another file in another folder."""
    noisy: Any = {"delta": 1e-3, "validation": "noisy", "validation_noise": 5.0}
    shared: Any = {**noisy, "ledger": "shared.jsonl"}
    folders = [tmp_path / "a", tmp_path / "b"]
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate(folders):
        private(seed, folder=folder, **shared).fit()

    def looked_at() -> tuple[dict[str, Any], list[str]]:
        trainers = [private(seed, **shared) for seed in range(2)]
        for trainer, folder in zip(trainers, folders):
            trainer.resume(folder / "checkpoints" / "best.pt")
        return combined_privacy(folders, trainers)

    entry, _ = looked_at()
    assert entry["privacy"]["epsilon"] > 0 and entry["privacy"]["validation"]["epsilon"] > 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    entry, lines = looked_at()
    assert entry == {"privacy": {"epsilon": None}} and "shared.jsonl" in lines[0]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_steps_that_a_checkpoint_knows_count_where_a_ledger_was_cut(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    several = [private(seed, folder=folder, delta=1e-3) for seed, folder in enumerate(folders)]
    for trainer, folder in zip(several, folders):
        trainer.fit()
        ledger = folder / "privacy.jsonl"
        ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:4]))
    reopened = []
    for seed, folder in enumerate(folders):
        reopened.append(private(seed, folder=folder, delta=1e-3))
        reopened[-1].resume(folder / "checkpoints" / "last.pt")
    entry, _ = combined_privacy(folders, reopened)
    mechanism, steps = several[0].account.mechanism, several[0].settings.steps
    assert sum(n for _, n in PrivacyLedger(folders[0] / "privacy.jsonl").composed()) < steps
    assert entry["privacy"]["epsilon"] == privacy_spent([(mechanism, 2 * steps)], 1e-3).epsilon


def test_what_patience_left_out_counts_for_all_runs_together(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    still: Any = {"delta": 1e-3, "steps": 20, "eval_every": 2, "patience": 1, "clip": None}
    still |= {"validation": "public", "optimizer": lambda ps: torch.optim.SGD(ps, lr=0.0)}
    several = [private(seed, folder=folder, **still) for seed, folder in enumerate(folders)]
    assert [trainer.fit().step for trainer in several] == [2, 2]
    entry, _ = combined_privacy(folders, several)
    wanted = privacy_spent([(several[0].account.mechanism, 40)], 1e-3)
    assert entry["privacy"]["epsilon"] == wanted.epsilon


def test_a_split_that_one_run_read_without_noise_is_private_in_none(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    noisy: Any = {"delta": 1e-3, "validation": "noisy", "validation_noise": 5.0}
    several = [private(0, folder=folders[0], **noisy)]
    several.append(private(1, folder=folders[1], delta=1e-3, validation="public"))
    for trainer in several:
        trainer.fit()
    entry, lines = combined_privacy(folders, several)
    assert entry["privacy"]["epsilon"] > 0
    assert entry["privacy"]["validation"] == {"epsilon": None}
    assert lines[1].endswith("none is claimed: one of them read the validation split without noise")


def test_scores_of_a_private_validation_split_add_up_too(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    noisy: Any = {"delta": 1e-3, "validation": "noisy", "validation_noise": 5.0}
    several = [private(seed, folder=folder, **noisy) for seed, folder in enumerate(folders)]
    for trainer in several:
        trainer.fit()
    entry, lines = combined_privacy(folders, several)
    [(mechanism, count)] = several[0].noisy.account.steps()  # type: ignore[union-attr]
    wanted = privacy_spent([(mechanism, 2 * count)], 1e-3)
    assert entry["privacy"]["validation"]["epsilon"] == wanted.epsilon
    assert lines[1] == f"privacy of validation samples: {wanted}, of all 2 runs together"


def test_nothing_is_claimed_of_runs_that_are_not_all_private(tmp_path: Path) -> None:
    cases: list[tuple[list[Any], str]] = [
        ([private(0), per_sample()], "some of them are not private"),
        ([private(0), private(1, noise="seeded")], "noise=seeded can be drawn again"),
        ([private(0), private(1, sampling="fixed_size", accountant="rdp")], "neighbouring data"),
    ]
    for trainers, reason in cases:
        entry, lines = combined_privacy([tmp_path] * 2, trainers)
        assert entry == {"privacy": {"epsilon": None}}
        assert len(lines) == 1 and reason in lines[0]
    assert combined_privacy([tmp_path] * 2, [per_sample(), per_sample()]) == ({}, [])


def test_evaluate_tells_what_both_runs_cost(run: Callable[..., Outcome], tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    few = ["data=digits", "trainer=private", "trainer.steps=3", "data.seed=0", "test_tasks=0"]
    for place, seed in (("a", 0), ("b", 1)):
        assert run("train", *few, f"seed={seed}", f"hydra.run.dir={place}").code == 0
    outcome = run("evaluate", "run=[a,b]")
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "a").glob("evaluation-test-combined2-*.json")
    found = json.loads(path.read_text())
    assert found["privacy"]["runs"] == 2 and found["privacy"]["epsilon"] > 3
    assert "of all 2 runs together" in outcome.out and len(found["scores"]["members"]) == 2
