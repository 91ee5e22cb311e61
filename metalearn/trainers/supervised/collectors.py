"""Callbacks that collect iterates of one network in training: snapshots, and moments for SWAG.

Axes: K columns of deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metalearn.core.bayes.swag import SWAGMoments, swag_init, swag_update
from metalearn.core.ensemble.stacking import take_member
from metalearn.core.memory import check_memory
from metalearn.errors import SettingError
from metalearn.models import Ensemble, Stack
from metalearn.schema import Kind, like, list_of, mapping
from metalearn.trainers.loop.protocols import Callback, Training

__all__ = ["SWAGCollector", "SnapshotCollector"]


class SnapshotCollector(Callback):
    """Keeps the network at the end of each cycle of the learning rate.

    Args:
        ensemble: of the one network.
        steps: of the whole training.
        members: how many cycles there are.

    Attributes:
        cycle: steps of a cycle.
        snapshots: states of the network so far.
    """

    def __init__(self, ensemble: Ensemble, steps: int, members: int) -> None:
        self._ensemble, self._steps, self._members = ensemble, steps, members
        self.cycle = steps // members
        self.snapshots: list[dict[str, Tensor]] = []

    def after_update(self, loop: Training) -> None:
        """Keep the network where a cycle ends."""
        if (loop.step + 1) % self.cycle == 0:
            self.snapshots.append(self._ensemble.member(0).state_dict())

    def state(self) -> dict[str, Any]:
        """The snapshots."""
        return {"snapshots": self.snapshots}

    def state_kinds(self) -> list[Kind]:
        """As many snapshots as there can be."""
        network = like(self._ensemble.member(0).state_dict())
        return [mapping({"snapshots": list_of(network, most=self._members)})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave, if cycles were as long then.

        Raises:
            SettingError: another number of cycles than these would have ended.
        """
        found, ended = len(state["snapshots"]), state["step"] // self.cycle
        if found != ended:
            accepted = (
                f"cycles as long as before are needed: {found} have ended by step {state['step']}, "
                f"and of steps/members={self.cycle} it would be {ended}"
            )
            raise SettingError("steps", self._steps, accepted)
        self.snapshots = list(state["snapshots"])


class SWAGCollector(Callback):
    """Adds every so many steps the parameters to their moments; see `metalearn.core.bayes.swag`.

    Args:
        ensemble: of the one network.
        rank: K, of the deviations that are kept.
        first: step after which collecting begins.
        every: steps between two iterates.

    Attributes:
        moments: of the iterates so far.

    Raises:
        SettingError: deviations that memory has no room for.
    """

    def __init__(self, ensemble: Ensemble, *, rank: int, first: int, every: int) -> None:
        self._ensemble, self.first, self.every = ensemble, first, every
        params = self._params()
        size = sum(p.numel() * p.element_size() for p in params.values())
        check_memory("rank", rank, rank * size, next(iter(params.values())).device)
        self.moments: SWAGMoments = swag_init(params, rank=rank)

    def after_update(self, loop: Training) -> None:
        """Add the parameters where an iterate is due."""
        done = loop.step + 1
        if done > self.first and (done - self.first) % self.every == 0:
            self.moments = swag_update(self.moments, self._params())

    def state(self) -> dict[str, Any]:
        """The moments."""
        return {"moments": self.moments._asdict()}

    def state_kinds(self) -> list[Kind]:
        """The moments."""
        return [mapping({"moments": like(self.moments._asdict())})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.moments = SWAGMoments(**state["moments"])

    def _params(self) -> dict[str, Tensor]:
        """Of the network, without a member axis."""
        stack = self._ensemble.stacks[0]
        assert isinstance(stack, Stack)
        params: dict[str, Tensor] = take_member(stack.state()[0], 0)
        return {name: value.detach() for name, value in params.items()}
