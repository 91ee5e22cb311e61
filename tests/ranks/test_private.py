"""Private training that ranks share: one account, in which every step is written down once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metalearn.privacy import PrivacyLedger
from tests.contracts.trainers import TRAINERS, Make
from tests.support.rank_threads import ThreadRanks, on_ranks

KINDS = {
    "samples": TRAINERS["private"],
    "scores": TRAINERS["private_noisy"],
    "tasks": TRAINERS["private_meta"],
}
SECURE: dict[str, Any] = {"noise": "secure", "steps": 5, "eval_every": 2}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def trained(make: Make, ledger: Path, ranks: ThreadRanks | None = None) -> Any:
    """With one file for all, as a shared disk has it."""
    how: dict[str, Any] = {"ledger": ledger, "folder": ledger.parent, **SECURE}
    trainer = make(**how) if ranks is None else ranks.made(make, **how)
    trainer.fit()
    return trainer


@kinds
def test_what_ranks_share_is_written_down_once(make: Make, tmp_path: Path) -> None:
    alone = trained(make, tmp_path / "alone" / "a.jsonl")
    ledger = tmp_path / "shared" / "a.jsonl"
    first, other = on_ranks(2, lambda ranks: trained(make, ledger, ranks))
    assert len(PrivacyLedger(ledger).runs()) == 1 and other.account.ledger is None
    assert first.account.steps() == alone.account.steps()
    assert first.account.spent() == alone.account.spent()
    for one in (first, other):  # whoever asks hears the same
        assert one.account.spent() == alone.account.spent()
        assert one.results()["privacy"]["epsilon"] == alone.results()["privacy"]["epsilon"]


@kinds
def test_ranks_get_the_same_noise_and_another_run_gets_other(make: Make, tmp_path: Path) -> None:
    def ends(name: str) -> list[dict[str, torch.Tensor]]:
        every = on_ranks(2, lambda ranks: trained(make, tmp_path / name / "a.jsonl", ranks))
        return [trainer.module.state_dict() for trainer in every]

    (one, other), (again, _) = ends("one"), ends("again")
    torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert not any(torch.equal(again[name], value) for name, value in one.items())


def test_scores_of_a_private_validation_are_written_down_once(tmp_path: Path) -> None:
    ledger = tmp_path / "shared" / "a.jsonl"
    first, other = on_ranks(2, lambda ranks: trained(KINDS["scores"], ledger, ranks))
    assert sum(count for _, count in first.noisy.account.steps()) == 4  # after 0, 2, 4, 5 steps
    assert other.noisy.account.ledger is None
    assert first.best_value == other.best_value
    assert first.noisy.account.spent() == other.noisy.account.spent()
