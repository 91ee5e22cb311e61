"""What several private runs have cost together, for who is in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metalearn.privacy import Accountant, PrivacyAccount, PrivacyLedger, privacy_spent
from metalearn.privacy.mechanism import Mechanism

__all__ = ["combined_privacy"]

_SCORES, _OF_SCORES = ".validation", "privacy of validation samples"
Accounts = list[tuple[Path, PrivacyAccount]]
"""Each with the folder of its run."""


def combined_privacy(
    folders: Sequence[Path], trainers: Sequence[Any]
) -> tuple[dict[str, Any], list[str]]:
    """(ε, δ) of releasing what several runs made, as an entry of a JSON file and lines of a table.

    All steps that any of the runs wrote down are composed, those after the state that is looked at
    among them, since that state was chosen among all. Runs that are not private add nothing here,
    and make what is released of them no more private than they are; then nothing is claimed.

    Args:
        folders: of the runs.
        trainers: of the runs, in the same order.

    Returns:
        The entry and the lines; empty where none of the runs is private.

    Raises:
        DataError: a ledger that is damaged, or dp-accounting is not installed.
    """
    every: list[Any] = [getattr(trainer, "account", None) for trainer in trainers]
    accounts: Accounts = [(f, one) for f, one in zip(folders, every) if one is not None]
    if not accounts:
        return {}, []
    reason = "some of them are not private" if None in every else _nothing_claimed(accounts)
    reason = reason or _not_there(accounts, "")
    if reason:
        return {"privacy": {"epsilon": None}}, [f"privacy: none is claimed of all runs: {reason}"]
    entry, lines = _composed(accounts, "")
    scorers = zip(folders, (getattr(trainer, "noisy", None) for trainer in trainers))
    scored: Accounts = [(f, one.account) for f, one in scorers if one is not None]
    if scored:
        reason = _not_there(scored, _SCORES)
        if any(trainer.training.validated for trainer in trainers):
            reason = "one of them read the validation split without noise"
        entry["validation"], further = (
            {"epsilon": None},
            [f"{_OF_SCORES}: none is claimed: {reason}"],
        )
        if not reason:
            entry["validation"], further = _composed(scored, _SCORES)
        lines += further
    return {"privacy": entry}, lines


def _nothing_claimed(known: Accounts) -> str:
    accounts = [account for _, account in known]
    if not all(account.secure for account in accounts):
        return "noise=seeded can be drawn again"
    if len({account.mechanism.neighbours for account in accounts}) > 1:
        return "their neighbouring data sets are not the same"
    return ""


def _composed(known: Accounts, of: str) -> tuple[dict[str, Any], list[str]]:
    """The cost of the steps of all runs, or of the scores of a private validation split."""
    accounts = [account for _, account in known]
    delta = max(account.delta for account in accounts)
    by: Accountant = "rdp" if any(one.accountant == "rdp" for one in accounts) else "pld"
    spent = privacy_spent(list(_steps(known, of)), delta, by)
    entry = {"epsilon": spent.epsilon, "delta": delta, "accountant": spent.accountant,
             "neighbours": spent.neighbours, "runs": len(accounts)}  # fmt: skip
    whose = _OF_SCORES if of else "privacy"
    of_all = f", of all {len(accounts)} runs together" if len(accounts) > 1 else ""
    return entry, [f"{whose}: {spent}{of_all}"]


def _not_there(known: Accounts, of: str) -> str:
    """Why not all steps are known: a checkpoint knows of those before it alone."""
    for folder, account in known:
        ledger = _ledger(folder, account, of)
        if not any(count for _, count in ledger.of(account.run)):
            return f"steps of {folder} stand in {ledger.path}, which is not there or another one"
    return ""


def _steps(known: Accounts, of: str) -> Iterator[tuple[Mechanism, int]]:
    """Those in the runs' ledgers, and no fewer than in checkpoints; all that were planned."""
    for folder, account in known:
        one = PrivacyAccount(
            account.mechanism, delta=account.delta, accountant=account.accountant,
            secure=account.secure, ledger=_ledger(folder, account, of), budget=account.budget,
        )  # fmt: skip
        one.load_state(account.state())
        yield from one.steps()
        yield from one.left()


def _ledger(folder: Path, account: PrivacyAccount, of: str) -> PrivacyLedger:
    return account.ledger or PrivacyLedger(folder / f"privacy{of}.jsonl")
