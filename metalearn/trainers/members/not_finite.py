"""What happens to a network whose loss, gradient or parameters are not finite: two policies.

Axes: M members, or 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

__all__ = ["Ending", "FreezeMember", "NotFinitePolicy", "RaiseError", "named"]

log = logging.getLogger(__name__)


class Ending(Exception):
    """Training cannot go on.

    Args:
        reason: a sentence without its end.
        kept: what a checkpoint of this moment holds, as ``"the state before the step is in"``; None
            where there is nothing to keep.
        advice: what may help; may be empty.
    """

    def __init__(self, reason: str, kept: str | None = None, advice: str = "") -> None:
        super().__init__(reason)
        self.reason, self.kept, self.advice = reason, kept, advice

    def sentence(self, path: Path | None) -> str:
        """The whole sentence, with the checkpoint that was written, if one was."""
        parts = [self.reason, f"{self.kept} {path}" if path else "", self.advice]
        return "; ".join(part for part in parts if part)


class Networks(Protocol):
    """What a policy sees of a population."""

    diverged: Tensor
    """``[M]``."""
    own: Tensor
    """``[M]``: those that this process knows of, where others train the rest."""
    endings: dict[int, str]
    """Why a network is not trained any more, by its index."""

    def put_back(self, index: int, step: int, what: str) -> None:
        """Put a network that diverged back to its best state, and freeze it."""


class NotFinitePolicy(Protocol):
    """What a population does about networks that are not finite, and how it speaks of them."""

    def remember(self, population: Networks) -> None:
        """Take note of what is known, as of a run that goes on, so that it is not said again."""

    def not_finite(
        self,
        population: Networks,
        lost: Mapping[int, str],
        step: int,
        suspects: Callable[[], str] | None,
    ) -> None:
        """Deal with networks, each with what of it is not finite.

        Args:
            population: that they are of.
            lost: by index; none where it was others that learnt of the last.
            step: of the training.
            suspects: names the batch; None where the parameters are not finite.

        Raises:
            Ending: training cannot go on.
        """

    def describe(self, networks: Sequence[int], single: str) -> str:
        """Names of networks; empty for none. ``single`` is what a single module is called."""

    def tell(self, index: int, why: str) -> None:
        """Say to the log that a network is not trained any more."""


class RaiseError:
    """The training of a single module ends."""

    def remember(self, population: Networks) -> None:
        """Nothing."""
        return

    def not_finite(
        self,
        population: Networks,
        lost: Mapping[int, str],
        step: int,
        suspects: Callable[[], str] | None,
    ) -> None:
        """End."""
        if suspects is None:
            raise Ending(
                f"step {step}: the outer update made parameters that are not finite",
                advice="a lower outer learning rate may help",
            )
        raise Ending(
            f"step {step}: {lost[0]} are not both finite, from {suspects()}",
            kept="the state before the step is in",
            advice="a lower inner or outer learning rate may help",
        )

    def describe(self, networks: Sequence[int], single: str) -> str:
        """What the module is called."""
        return single if networks else ""

    def tell(self, index: int, why: str) -> None:
        """Nothing: the end of a training says it."""
        return


class FreezeMember:
    """A member is put back to its best state and frozen, until all have diverged."""

    def __init__(self) -> None:
        self._over = False

    def remember(self, population: Networks) -> None:
        """Take note of whether all have, as far as ranks that train others have said."""
        self._over = bool(population.diverged.all()) and bool(population.own.all())

    def not_finite(
        self,
        population: Networks,
        lost: Mapping[int, str],
        step: int,
        suspects: Callable[[], str] | None,
    ) -> None:
        """Put them back; end where none is left that has not diverged."""
        for index, what in lost.items():
            population.put_back(index, step, what)
        said = self._over
        self.remember(population)
        if self._over and not said:
            ends = "; ".join(f"member {i}: {why}" for i, why in sorted(population.endings.items()))
            raise Ending(
                f"step {step}: every member has diverged ({ends})", kept="their best states are in"
            )

    def describe(self, networks: Sequence[int], single: str) -> str:
        """``member 1, member 3``."""
        return named(networks)

    def tell(self, index: int, why: str) -> None:
        """A warning."""
        log.warning("member %d is not trained any more: %s", index, why)


def named(members: Sequence[int]) -> str:
    """``member 1, member 3``."""
    return ", ".join(f"member {index}" for index in members)
