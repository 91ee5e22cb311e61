"""What a private training says of its cost; trainers take its methods by name.

Axes: none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metalearn.privacy import PrivacyAccount

__all__ = ["cost_remarks", "data_checksum", "privacy_summary", "remarks", "results"]


def results(self: Any) -> Mapping[str, Any]:
    """What the training has cost so far, as plain values."""
    return {"privacy": privacy_summary(self.account)}


def remarks(self: Any) -> list[str]:
    """What it has cost, in a line."""
    if not self.account.secure:
        return ["privacy: none is claimed, since noise=seeded can be drawn again"]
    return cost_remarks(self.account, self.epsilon, "privacy", "steps")


def cost_remarks(account: PrivacyAccount, asked: float | None, what: str, units: str) -> list[str]:
    """What an account has spent, alone and with all runs of its ledger; whether that is too much.

    Args:
        account: with secure noise.
        asked: ε that all of it was to cost; None where σ was given.
        what: the lines begin with.
        units: what is counted.
    """
    spent = account.spent()
    found, ledger = [f"{what}: {spent}"], account.ledger
    if ledger is not None and (count := len(ledger.runs())) > 1:
        spent = account.spent_together()
        found.append(f"{what}: {spent}, of all {count} runs of {ledger.path}")
    if asked is not None and spent.epsilon > asked:
        reason = f"{units} were taken anew, or with other settings"
        if len(found) > 1:
            reason += ", or by more runs than trainer.runs says"
        found.append(f"{what}: more than the ε of {asked:g} that was asked for: {reason}")
    return found


@property  # type: ignore[misc]
def data_checksum(self: Any) -> None:
    """None: by a checksum, who knows all data but one unit could find out that one by trying."""


def privacy_summary(account: PrivacyAccount) -> dict[str, Any]:
    """What a person needs to know of it a year later, as plain values."""
    mechanism, steps = account.mechanism.state(), account.steps()
    found: dict[str, Any] = {
        "epsilon": None, "delta": account.delta, "accountant": account.accountant,
        "neighbours": account.mechanism.neighbours,
        "noise": "secure" if account.secure else "seeded",
        **{name: value for name, value in mechanism.items() if name != "kind"},
        "steps": sum(count for _, count in steps),
        "ledger": None if account.ledger is None else str(account.ledger.path),
    }  # fmt: skip
    if account.budget is not None:
        found["order"] = account.budget.order
    if left := account.left():  # which count as well, see `PrivacyAccount`
        found["steps_left"] = sum(count for _, count in left)
    if len(steps) > 1:
        found["mechanisms"] = [{**made.state(), "steps": count} for made, count in steps]
    if account.secure:
        spent = account.spent()
        found |= {"epsilon": spent.epsilon, "accountant": spent.accountant}
        if account.ledger is not None and len(account.ledger.runs()) > 1:
            together = account.spent_together().epsilon
            found["epsilon_of_ledger"] = together if math.isfinite(together) else None
    return found
