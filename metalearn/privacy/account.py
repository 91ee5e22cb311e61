"""The account of one run: steps are written down before they are taken, ε is of what is written.

Axes: none; a step is a whole number, counted from 0 at the start of its run.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from metalearn.errors import DataError, SettingError, check_whole
from metalearn.privacy.accounting import Accountant, PrivacySpent, check_accounting, privacy_spent
from metalearn.privacy.ledger import PrivacyLedger
from metalearn.privacy.mechanism import Mechanism, SeededNoise, mechanism_of
from metalearn.privacy.renyi_filter import RenyiFilter
from metalearn.privacy.series import Records, summed
from metalearn.schema import Kind, entries, list_of, mapping, nothing, text, whole
from metalearn.signatures import checked

__all__ = ["PrivacyAccount", "account_kind"]

Steps = list[tuple[Mechanism, int]]


class PrivacyAccount:
    """What a run has spent, by the steps that were reserved for it and never by those it says.

    A step counts once it is reserved, whether it was taken or not; one that is taken anew after a
    kill is reserved anew and counts twice, since its noise is drawn anew. What is counted grows
    only: by a checkpoint that says more than the ledger, by another σ or batch size (steps of the
    former mechanism stay), by every resumption.

    Args:
        mechanism: of the steps to come.
        delta: δ in (0, 1), usually below 1/N.
        accountant: by what ε is bounded, see `privacy_spent`.
        ledger: where steps are written down; None keeps them in memory and in checkpoints alone,
            so that steps between the last checkpoint and a kill are **not** counted.
        run: the run's random identity; None draws one, and `load_state` takes that of the
            checkpoint.
        secure: whether the noise comes from a cryptographically secure generator. False counts
            every step as one without noise: `spent` refuses an ε, and a ledger that has such
            steps gives infinity.
        name: what the run is called in the ledger.
        data: a checksum of its training data.
        budget: of a run whose steps are chosen by what earlier ones released (`AdaptiveGaussian`);
            `spent` is what may be claimed by it then.
        planned: steps in all of a run that may be ended before them by what it released, as by
            patience. Then the number that was taken is an output too, of which no ε may be claimed:
            from the first step on all that were planned count, in the ledger as well. The most that
            was said of a run holds. None: no output ends it.

    Raises:
        SettingError: a value out of range, or an accountant that does not know the sampling.
        DataError: the ledger is damaged or no ledger.
    """

    @checked
    def __init__(
        self,
        mechanism: Mechanism,
        *,
        delta: float,
        accountant: Accountant = "pld",
        ledger: PrivacyLedger | None = None,
        run: str | None = None,
        secure: bool = True,
        name: str = "",
        data: str = "",
        budget: RenyiFilter | None = None,
        planned: int | None = None,
    ) -> None:
        check_accounting(delta, accountant)
        if planned is not None:
            check_whole("planned", planned, 1)
        if run == "":
            raise SettingError("run", run, "a text that is not empty is needed")
        self.delta, self.accountant, self.secure = float(delta), accountant, secure
        self.run, self.budget, self.planned = run or secrets.token_hex(16), budget, planned
        self.ledger, self._said = ledger, {"name": name, "data": data}
        self._kept: PrivacyLedger | Records = ledger or Records()
        self._kept.of(self.run)
        self._numbers: dict[Mechanism, int] = {}
        self._missing: Steps = []  # of a checkpoint, and not in the ledger
        self._saved: Steps = []  # of a checkpoint
        self._left: Steps = []  # as it says, where the ledger knows of no later step
        self._ready: tuple[int, int, int] = (-1, 0, 0)  # reserved, not taken: declaration, range
        self._known: dict[str, tuple[Steps, PrivacySpent]] = {}
        self.change(mechanism)

    @checked
    def change(self, mechanism: Mechanism) -> None:
        """Take steps of another mechanism from now on; those so far stay what they are.

        Raises:
            SettingError: it does not compose with those so far, since neighbouring data sets are
                others for it; or the accountant does not know its sampling.
        """
        counted: Mechanism = mechanism if self.secure else SeededNoise(mechanism)
        before = [(other, 0) for other in self._numbers]
        privacy_spent([*before, (counted, 0)], self.delta, self.accountant)
        self.mechanism, self._counted = mechanism, counted

    def reserve(self, step: int, count: int = 1) -> None:
        """Write down a step before its noise is drawn; on the disk when this returns.

        Args:
            step: of the run, counted from 0.
            count: how many steps to write down at once. Those that follow are free then: they
                are taken from what is reserved. A run that stops before has spent them all the
                same.

        Raises:
            SettingError: no such step.
            DataError: the ledger is damaged or gone.
            StorageError: it cannot be written to.
        """
        check_whole("step", step, 0)
        check_whole("count", count, 1)
        self._write_missing()
        number = self._numbers.get(self._counted)
        if number is None:
            number = self._declared(self._counted)
            self._numbers[self._counted] = number
        known, first, beyond = self._ready
        if known == number and step == first < beyond:
            self._ready = (number, step + 1, beyond)
            return
        self._ready = (-1, 0, 0)
        self._kept.reserve(number, step, count)
        self._ready = (number, step + 1, step + count)

    def left(self) -> Steps:
        """What counts beside `steps` once there are some: those that were planned beyond them."""
        if self._knows_place():
            return self._kept.left(self.run, self.planned or 0)
        have = sum(count for _, count in self.steps())
        if self._left or self.planned is None or not have:
            return self._left
        count = self._counted.counted(0, self.planned) - have  # its place is not known
        return [(self._counted, count)] if count > 0 else []

    def steps(self) -> list[tuple[Mechanism, int]]:
        """Mechanisms of this run, and as how many steps of each it counts."""
        return summed([*self._kept.of(self.run), *self._missing])

    def spent(self) -> PrivacySpent:
        """(ε, δ) of this run; ε is worked out anew only where steps were added.

        Raises:
            SettingError: the noise is seeded; or the run changed to steps that do not compose.
            DataError: the ledger is damaged, or dp-accounting is not installed.
        """
        steps = summed([*self.steps(), *self.left()])
        found = self._spent("run", steps)
        if self.budget is None:
            return found
        return PrivacySpent(self.budget.epsilon(steps), self.delta, found.neighbours, "rdp")

    def spent_together(self) -> PrivacySpent:
        """(ε, δ) of all runs in the ledger, infinity where one of them had seeded noise.

        Raises:
            SettingError: the noise is seeded; or the runs do not compose.
            DataError: the ledger is damaged, or dp-accounting is not installed.
        """
        counted = [(made, -count) for made, count in self._kept.left(self.run)]
        every = [*self._kept.composed(), *self._missing, *counted, *self.left()]
        return self._spent("all", [(made, count) for made, count in summed(every) if count])

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the run and all that it counts."""
        steps = [[mechanism.state(), count] for mechanism, count in self.steps()]
        found: dict[str, Any] = {"run": self.run, "steps": steps}
        if self.budget is not None:
            found["budget"] = self.budget.state()
        if self.planned is not None:
            found["planned"] = self.planned
        if left := self.left():
            found["left"] = [[mechanism.state(), count] for mechanism, count in left]
        return {"privacy": found}

    def state_kinds(self) -> list[Kind]:
        """The same."""
        return [mapping({"privacy": account_kind()})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of a checkpoint: of each mechanism the larger count holds.

        What the ledger lacks, because it is another one or was deleted, counts at once and is
        written down before the next step: who only looks at a run writes nothing. A budget is that
        of the checkpoint, since it was fixed before the first step.

        Raises:
            SettingError: its steps do not compose with those to come; or they were chosen within a
                budget, and this account has none.
            DataError: a mechanism that is known to nobody here; a ledger that is damaged; or steps
                of another run were reserved already.
            StorageError: the ledger cannot be written to.
        """
        saved = state["privacy"]
        if self._numbers and saved["run"] != self.run:
            found = f"run {saved['run']} of the checkpoint is not {self.run}"
            raise DataError(f"steps were reserved already for another run ({found})")
        if "budget" in saved and self.budget is None:
            accepted = "a budget is needed: steps of this run were chosen by what was released"
            raise SettingError("budget", None, accepted)
        counts = [(mechanism_of(known), count) for known, count in saved["steps"]]
        zero: Steps = [(mechanism, 0) for mechanism, _ in counts]
        privacy_spent([*zero, (self._counted, 0)], self.delta, self.accountant)
        self.run = saved["run"]
        if "budget" in saved:
            self.budget = RenyiFilter.from_state(saved["budget"], self.delta)
        if "planned" in saved:
            self.planned = max(saved["planned"], self.planned or 0)
        self._left = [(mechanism_of(known), count) for known, count in saved.get("left", [])]
        self._missing, self._saved = [], counts
        have = dict(self.steps())
        more = [(mechanism, count - have.get(mechanism, 0)) for mechanism, count in counts]
        self._missing = [(mechanism, count) for mechanism, count in more if count > 0]

    def _write_missing(self) -> None:
        while self._missing:
            mechanism, count = self._missing[0]
            number = self._declared(mechanism)
            self._kept.reserve(number, 0, count)
            del self._missing[0]

    def _knows_place(self) -> bool:
        """Whether what is written down says where the run is: not where the end of it was lost."""
        kept, saved = self._kept.of(self.run), dict(self._saved)
        if self._left:
            return any(count > saved.get(mechanism, 0) for mechanism, count in kept)
        return any(count for _, count in kept)

    def _declared(self, mechanism: Mechanism) -> int:
        return self._kept.declare(self.run, mechanism, planned=self.planned or 0, **self._said)

    def _spent(self, whose: str, steps: Steps) -> PrivacySpent:
        if not self.secure:
            accepted = (
                "noise from a seeded generator can be drawn again and taken off, so no ε is given; "
                "draw it from the secure generator"
            )
            raise SettingError("secure", self.secure, accepted)
        known = self._known.get(whose)
        if known is None or known[0] != steps:
            every = steps or [(self._counted, 0)]
            known = self._known[whose] = steps, privacy_spent(every, self.delta, self.accountant)
        return known[1]


def account_kind() -> Kind:
    """What the state of an account is in a checkpoint."""
    steps = list_of(entries(mapping({}), whole()))
    fields: dict[str, Kind] = {"run": _name, "steps": steps}
    more = {"budget": RenyiFilter.state_kind(), "planned": whole(1), "left": steps}
    return mapping(fields, more, others=nothing)


def _name(value: Any, where: str) -> None:
    text(value, where)
    if not value:
        text(None, where)
