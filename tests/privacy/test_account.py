"""The account of a run: what counts, checkpoints, resumption, seeded noise."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metalearn.checkpoint import load_checkpoint, save_checkpoint
from metalearn.cli.combined_privacy import combined_privacy
from metalearn.errors import DataError, SettingError
from metalearn.privacy import PrivacyAccount, PrivacyLedger, SampledGaussian, privacy_spent
from metalearn.privacy.mechanism import SeededNoise
from metalearn.schema import Misfit

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")

ONE = SampledGaussian("full_batch", 50, 50, 20.0)
LESS = SampledGaussian("full_batch", 50, 50, 9.0)
SHUFFLED = SampledGaussian("shuffled", 90, 30, 9.0)
RULE: dict[str, Any] = {"delta": 1e-5, "accountant": "rdp"}


@pytest.fixture(params=["memory", "disk"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Fresh keepers of steps."""
    return {} if request.param == "memory" else {"ledger": PrivacyLedger(tmp_path / "p.jsonl")}


def reserved(account: PrivacyAccount, steps: range) -> PrivacyAccount:
    for step in steps:
        account.reserve(step)
    return account


def epsilon(*steps: tuple[SampledGaussian, int]) -> float:
    return privacy_spent(steps, 1e-5, "rdp").epsilon


def test_every_reserved_step_is_spent(where: dict[str, Any]) -> None:
    account = PrivacyAccount(ONE, **RULE, **where)
    assert account.spent().epsilon == 0
    assert account.spent().neighbours == "add_or_remove_one"
    for count in range(1, 4):
        account.reserve(count - 1)
        assert account.spent().epsilon == epsilon((ONE, count))
    account.reserve(2)  # taken anew
    assert account.spent().epsilon == epsilon((ONE, 4))
    assert account.steps() == [(ONE, 4)]


def test_steps_reserved_at_once_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    account = PrivacyAccount(ONE, ledger=PrivacyLedger(path), **RULE)
    account.reserve(0, 4)
    size = path.stat().st_size
    reserved(account, range(1, 4))
    assert path.stat().st_size == size
    assert account.steps() == [(ONE, 4)]
    account.reserve(3)  # anew
    account.reserve(4, 4)
    account.reserve(6)  # not the next one
    account.reserve(5)
    assert account.steps() == [(ONE, 11)]


def test_another_mechanism_leaves_what_was_spent(where: dict[str, Any]) -> None:
    account = reserved(PrivacyAccount(ONE, **RULE, **where), range(3))
    account.change(LESS)
    reserved(account, range(3, 5))
    account.change(ONE)
    account.reserve(5)
    assert account.steps() == [(ONE, 4), (LESS, 2)]
    assert account.spent().epsilon == epsilon((ONE, 4), (LESS, 2))
    with pytest.raises(SettingError, match="an ε is for one neighbouring relation"):
        account.change(SHUFFLED)
    assert account.mechanism == ONE


def test_a_checkpoint_carries_the_account(where: dict[str, Any], tmp_path: Path) -> None:
    first = reserved(PrivacyAccount(ONE, **RULE, **where), range(3))
    save_checkpoint(tmp_path / "c.pt", first.state())
    state = load_checkpoint(tmp_path / "c.pt")
    for kind in first.state_kinds():
        kind(state, "")
    again = PrivacyAccount(LESS, **RULE, **where)  # resumed with less noise
    again.load_state(state)
    assert again.run == first.run
    assert again.spent() == first.spent()
    reserved(again, range(3, 5))
    assert again.spent().epsilon == epsilon((ONE, 3), (LESS, 2))


def test_the_ledger_knows_what_a_checkpoint_does_not(tmp_path: Path) -> None:
    """Steps between the checkpoint and a kill, of any number of resumptions."""
    ledger = PrivacyLedger(tmp_path / "p.jsonl")
    account = reserved(PrivacyAccount(ONE, ledger=ledger, **RULE), range(3))
    state = account.state()
    reserved(account, range(3, 8))
    for resumption in range(1, 4):
        account = PrivacyAccount(ONE, ledger=PrivacyLedger(ledger.path), **RULE)
        account.load_state(state)
        assert account.steps() == [(ONE, 3 + 5 * resumption)]
        reserved(account, range(3, 8))
    assert account.spent().epsilon == epsilon((ONE, 23))


def test_a_checkpoint_knows_what_another_ledger_does_not(tmp_path: Path) -> None:
    first = PrivacyAccount(ONE, ledger=PrivacyLedger(tmp_path / "a.jsonl"), **RULE)
    state = reserved(first, range(6)).state()
    other = PrivacyLedger(tmp_path / "b.jsonl")
    account = PrivacyAccount(ONE, ledger=other, name="resumed", **RULE)
    account.load_state(state)
    assert account.steps() == [(ONE, 6)] and account.spent() == first.spent()
    assert account.spent_together() == first.spent()
    assert not other.path.exists()  # who only looks writes nothing
    account.load_state(state)  # twice is once
    assert account.steps() == [(ONE, 6)]
    account.reserve(6)
    assert PrivacyLedger(other.path).of(first.run) == [(ONE, 7)]
    assert other.runs()[0].name == "resumed"


def test_shuffled_epochs_are_carried_whole(where: dict[str, Any]) -> None:
    first = reserved(PrivacyAccount(SHUFFLED, **RULE, **where), range(4))
    assert first.steps() == [(SHUFFLED, 6)]
    again = PrivacyAccount(SHUFFLED, **RULE, **where)
    again.load_state(first.state())
    again.reserve(4)
    assert again.steps() == [(SHUFFLED, 9)]


def test_two_runs_of_one_ledger_are_one_composition(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    one = reserved(PrivacyAccount(ONE, ledger=PrivacyLedger(path), **RULE), range(5))
    two = reserved(PrivacyAccount(LESS, ledger=PrivacyLedger(path), **RULE), range(3))
    one.reserve(5)
    assert one.run != two.run
    assert one.spent().epsilon == epsilon((ONE, 6))
    assert two.spent().epsilon == epsilon((LESS, 3))
    assert one.spent_together() == two.spent_together()
    assert one.spent_together().epsilon == epsilon((LESS, 3), (ONE, 6))


def test_seeded_noise_gives_no_epsilon(tmp_path: Path, where: dict[str, Any]) -> None:
    seeded = reserved(PrivacyAccount(ONE, secure=False, **RULE, **where), range(2))
    assert seeded.steps() == [(SeededNoise(ONE), 2)]
    for ask in (seeded.spent, seeded.spent_together):
        with pytest.raises(SettingError, match="secure=False: noise from a seeded generator"):
            ask()
    resumed = PrivacyAccount(ONE, **RULE, **where)
    resumed.load_state(seeded.state())
    resumed.reserve(2)
    assert resumed.spent().epsilon == math.inf
    if where:  # others of the same ledger
        other = reserved(PrivacyAccount(ONE, **RULE, **where), range(2))
        assert other.spent().epsilon == epsilon((ONE, 2))
        assert other.spent_together().epsilon == math.inf


def test_epsilon_is_worked_out_where_steps_were_added(
    monkeypatch: pytest.MonkeyPatch, where: dict[str, Any]
) -> None:
    account = reserved(PrivacyAccount(ONE, **RULE, **where), range(3))
    asked: list[Any] = []

    def counted(steps: Any, *rest: Any) -> Any:
        asked.append(list(steps))
        return privacy_spent(steps, *rest)

    monkeypatch.setattr("metalearn.privacy.account.privacy_spent", counted)
    assert account.spent() == account.spent() == account.spent_together()
    assert len(asked) == 2  # of the run and of all
    account.reserve(3)
    account.spent()
    assert asked[2:] == [[(ONE, 4)]]


def test_what_does_not_compose_is_refused_when_it_is_resumed() -> None:
    state = reserved(PrivacyAccount(SHUFFLED, **RULE), range(2)).state()
    with pytest.raises(SettingError, match="steps='add_or_remove_one, zero_out_one': an ε is for"):
        PrivacyAccount(ONE, **RULE).load_state(state)
    busy = reserved(PrivacyAccount(SHUFFLED, **RULE), range(2))
    with pytest.raises(DataError, match="steps were reserved already for another run"):
        busy.load_state(state)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    for change, said in (
        ({"delta": 1.0}, r"delta=1.0: a number in \(0, 1\)"),
        ({"accountant": "gdp"}, "accountant='gdp': one of pld, rdp"),
        ({"run": ""}, "run='': a text that is not empty"),
        ({"mechanism": "poisson"}, "mechanism='poisson': a Mechanism is needed"),
        ({"ledger": str(tmp_path)}, "ledger=.*: a PrivacyLedger or null is needed"),
    ):
        with pytest.raises(SettingError, match=said):
            PrivacyAccount(**{"mechanism": ONE, **RULE, **change})
    drawn = SampledGaussian("fixed_size", 9, 3, 1.0)
    with pytest.raises(SettingError, match='batches of fixed size are accounted by "rdp" alone'):
        PrivacyAccount(drawn, delta=1e-5)
    account = PrivacyAccount(ONE, **RULE)
    for step, count, said in ((-1, 1, "step=-1"), (0, 0, "count=0"), (0.5, 1, "step=0.5")):
        with pytest.raises(SettingError, match=said):
            account.reserve(step, count)  # type: ignore[arg-type]
    assert account.steps() == []
    damaged = tmp_path / "p.jsonl"
    damaged.write_text("nothing\n")
    with pytest.raises(DataError, match="this is no ledger"):
        PrivacyAccount(ONE, ledger=PrivacyLedger(damaged), **RULE)


def test_states_of_another_kind_are_misfits() -> None:
    account = reserved(PrivacyAccount(ONE, **RULE), range(2))
    right = account.state()["privacy"]
    (kind,) = account.state_kinds()
    for wrong, said in (
        ({}, "privacy.run is"),
        ({**right, "run": ""}, "privacy.run is"),
        ({**right, "steps": [[{}, -1]]}, r"privacy.steps\[0\]\[1\] is -1"),
        ({**right, "steps": [[{}]]}, r"the length of privacy.steps\[0\] is 1"),
        ({**right, "epsilon": 0.1}, "privacy.epsilon is 0.1, but no such entry"),
    ):
        with pytest.raises(Misfit, match=said):
            kind({"privacy": wrong}, "")
    with pytest.raises(DataError, match="kind is None"):
        account.load_state({"privacy": {**right, "steps": [[{}, 1]]}})


# --- runs that may be ended by what they released ------------------------------------------------


def test_a_run_that_outputs_may_end_claims_all_that_was_planned(where: dict[str, Any]) -> None:
    account = PrivacyAccount(ONE, planned=9, **RULE, **where)
    assert account.spent().epsilon == 0  # nothing was released
    reserved(account, range(4))
    assert account.steps() == [(ONE, 4)] and account.left() == [(ONE, 5)]
    for found in (account.spent(), account.spent_together()):
        assert found.epsilon == epsilon((ONE, 9))
    reserved(account, range(2, 6))  # gone on with from step 2 after a kill: two were taken anew
    assert account.spent().epsilon == epsilon((ONE, 11))
    reserved(account, range(6, 9))
    assert account.left() == [] and account.spent().epsilon == epsilon((ONE, 11))


def test_the_ledger_counts_what_was_planned_of_every_run(tmp_path: Path) -> None:
    """So another run, or who looks at this one without its settings, cannot claim less."""
    path = tmp_path / "p.jsonl"
    account = PrivacyAccount(ONE, planned=9, ledger=PrivacyLedger(path), **RULE)
    account.reserve(0, 4)
    assert PrivacyLedger(path).composed() == [(ONE, 9)]
    assert PrivacyLedger(path).of(account.run) == [(ONE, 4)]
    assert PrivacyLedger(path).left(account.run) == [(ONE, 5)]
    other = PrivacyAccount(ONE, ledger=PrivacyLedger(path), **RULE)
    reserved(other, range(2))
    assert other.spent_together().epsilon == epsilon((ONE, 11))
    for planned in (None, 3, 9):
        seen = PrivacyAccount(ONE, planned=planned, ledger=PrivacyLedger(path), **RULE)
        seen.load_state(account.state())
        assert seen.spent().epsilon == epsilon((ONE, 9))
    seen.reserve(4)  # gone on with after all
    assert seen.spent().epsilon == epsilon((ONE, 9))
    longer = PrivacyAccount(ONE, planned=12, ledger=PrivacyLedger(path), **RULE)
    longer.load_state(account.state())
    longer.reserve(5)
    assert longer.spent().epsilon == epsilon((ONE, 12))


def test_a_run_without_a_plan_claims_what_it_took(where: dict[str, Any]) -> None:
    account = PrivacyAccount(ONE, **RULE, **where)
    reserved(account, range(4))
    assert account.steps() == [(ONE, 4)] and account.left() == []
    assert account.spent().epsilon == epsilon((ONE, 4))
    assert "planned" not in account.state()["privacy"]


@pytest.mark.parametrize("first", [0, 1, 2, 3, 5])
def test_shuffled_steps_that_are_left_end_their_epoch_once(
    first: int, where: dict[str, Any]
) -> None:
    """Epochs of three steps: what is claimed is that of all steps in a row."""
    account, whole = (PrivacyAccount(SHUFFLED, planned=8, **RULE) for _ in range(2))
    reserved(whole, range(first, 8))
    reserved(account, range(first, first + 2))
    assert account.spent().epsilon == whole.spent().epsilon
    assert sum(n for _, n in [*account.steps(), *account.left()]) == whole.steps()[0][1]


def test_where_the_ledger_is_lost_the_plan_of_the_checkpoint_holds(tmp_path: Path) -> None:
    """Of a run that took two steps anew, what is left is not what was planned less what counts."""
    ledger = PrivacyLedger(tmp_path / "p.jsonl")
    account = PrivacyAccount(ONE, planned=9, ledger=ledger, **RULE)
    reserved(account, range(4))
    reserved(account, range(2, 4))
    for planned in (None, 3, 9):
        again = PrivacyAccount(ONE, planned=planned, **RULE)
        again.state_kinds()[0](account.state(), "")
        again.load_state(account.state())
        assert again.spent().epsilon == again.spent_together().epsilon == epsilon((ONE, 11))
        again.reserve(4)  # what is left is that of the ledger now
        assert again.spent().epsilon == epsilon((ONE, 11))


def test_a_plan_that_the_ledger_does_not_know_counts_all_the_same(tmp_path: Path) -> None:
    """As in ledgers and checkpoints of before, or in ones that were cut."""
    path = tmp_path / "p.jsonl"
    before = PrivacyAccount(ONE, ledger=PrivacyLedger(path), **RULE)
    reserved(before, range(4))
    old, new = before.state(), before.state()
    new["privacy"] |= {"planned": 9, "left": [[ONE.state(), 5]]}
    for state, planned in ((old, 9), (new, 9), (new, None), (new, 3)):
        for ledger in (PrivacyLedger(path), None):
            seen = PrivacyAccount(ONE, planned=planned, ledger=ledger, **RULE)
            seen.load_state(state)
            assert seen.spent().epsilon == seen.spent_together().epsilon == epsilon((ONE, 9))


def test_a_declaration_without_steps_says_nothing_of_a_plan(tmp_path: Path) -> None:
    """A process that is killed between the two, while it writes a lost ledger anew."""
    account = PrivacyAccount(ONE, planned=9, ledger=PrivacyLedger(tmp_path / "a.jsonl"), **RULE)
    reserved(account, range(4))
    lost = PrivacyLedger(tmp_path / "b.jsonl")
    lost.declare(account.run, ONE, planned=9)
    seen = PrivacyAccount(ONE, planned=9, ledger=lost, **RULE)
    seen.load_state(account.state())
    assert seen.spent().epsilon == seen.spent_together().epsilon == epsilon((ONE, 9))


def test_a_checkpoint_keeps_a_plan_that_the_ledger_alone_knew(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    plain = PrivacyAccount(ONE, ledger=PrivacyLedger(path), **RULE)
    reserved(plain, range(2))
    patient = PrivacyAccount(ONE, planned=9, ledger=PrivacyLedger(path), **RULE)
    patient.load_state(plain.state())
    patient.reserve(2)
    again = PrivacyAccount(ONE, ledger=PrivacyLedger(path), **RULE)
    again.load_state(plain.state())
    assert again.spent().epsilon == epsilon((ONE, 9))
    alone = PrivacyAccount(ONE, **RULE)
    alone.load_state(again.state())
    assert alone.spent().epsilon == epsilon((ONE, 9))


def _cut(ledger: PrivacyLedger, lines: int) -> PrivacyLedger:
    """The ledger as it was, its last lines lost."""
    whole = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(whole[:-lines]))
    return PrivacyLedger(ledger.path)


def test_where_the_end_of_the_ledger_is_lost_the_plan_of_the_checkpoint_holds(
    tmp_path: Path,
) -> None:
    """Though steps of the run stand in it: they do not say where the run is."""
    ledger = PrivacyLedger(tmp_path / "p.jsonl")
    account = PrivacyAccount(ONE, planned=20, ledger=ledger, **RULE)
    reserved(account, range(4))
    account.change(LESS)
    reserved(account, range(4, 9))
    wanted = epsilon((ONE, 4), (LESS, 16))
    assert account.spent().epsilon == pytest.approx(wanted, rel=1e-12)
    state = account.state()
    for planned in (20, None):
        cut = PrivacyLedger(tmp_path / f"{planned}.jsonl")
        cut.path.write_bytes(ledger.path.read_bytes())
        seen = PrivacyAccount(LESS, planned=planned, ledger=_cut(cut, 6), **RULE)
        seen.load_state(state)
        assert seen.spent().epsilon == seen.spent_together().epsilon
        assert seen.spent().epsilon == pytest.approx(wanted, rel=1e-12)
        trainer = SimpleNamespace(account=seen, training=None)
        entry, _ = combined_privacy([tmp_path], [trainer])
        assert entry["privacy"]["epsilon"] == pytest.approx(wanted, rel=1e-12)
        assert seen.state()["privacy"]["left"] == state["privacy"]["left"]
        seen.reserve(9)  # what it lacks is written down, and its place is known again
        assert seen.spent().epsilon == pytest.approx(wanted, rel=1e-12)


def test_a_lost_ledger_that_was_begun_anew_without_a_step_says_nothing_of_a_place(
    tmp_path: Path,
) -> None:
    """As a process leaves it that is killed after it wrote what was lost."""
    account = PrivacyAccount(ONE, planned=9, ledger=PrivacyLedger(tmp_path / "a.jsonl"), **RULE)
    reserved(account, range(4))
    reserved(account, range(2, 5))  # two were taken anew
    state, wanted = account.state(), epsilon((ONE, 4 + 7))
    assert account.spent().epsilon == wanted
    begun = PrivacyLedger(tmp_path / "b.jsonl")
    begun.reserve(begun.declare(account.run, ONE, planned=9), 0, 7)
    seen = PrivacyAccount(ONE, planned=9, ledger=begun, **RULE)
    seen.load_state(state)
    assert seen.spent().epsilon == seen.spent_together().epsilon == wanted


def test_numbers_that_were_passed_over_are_no_place(tmp_path: Path) -> None:
    """Scores that earlier versions numbered by steps; all that are planned count beside them."""
    before = PrivacyAccount(ONE, ledger=PrivacyLedger(tmp_path / "p.jsonl"), **RULE)
    for step in (0, 10, 20):
        before.reserve(step)
    after = PrivacyAccount(ONE, planned=6, ledger=before.ledger, **RULE)
    after.load_state(before.state())
    assert after.spent().epsilon == epsilon((ONE, 3 + 6))
    after.reserve(3)  # as they are numbered now
    assert after.spent().epsilon == epsilon((ONE, 3 + 3))


def test_a_plan_of_no_steps_is_refused() -> None:
    for bad in (0, -1, 2.5, True):
        with pytest.raises(SettingError, match="^planned="):
            PrivacyAccount(ONE, planned=bad, **RULE)  # type: ignore[arg-type]
