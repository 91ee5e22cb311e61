"""How members' gradients are taken: decided once in a training, and kept over a stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch

from metalearn.core.ensemble.stacking import MemberEngine
from metalearn.schema import Kind, choice, mapping, maybe, text, whole
from metalearn.trainers.loop.plans import keeps, memory_budget
from metalearn.trainers.members.settings import MemberPlan, plan_members

__all__ = ["MemberPlanner", "PlannedEngine"]

log = logging.getLogger(__name__)

PlannedEngine = Literal["auto", "batched", "loop"]


class MemberPlanner:
    """Decides engine and chunk by trials, and says so; see `plan_members`.

    Args:
        engine: that was asked for.
        chunk_size: members at a time; None is all, or what fits ``memory``.
        memory: what gradients may take; None is what the device has free.
        deterministic: measure nothing.
        device: where.

    Attributes:
        plan: what has been decided; None before.
    """

    def __init__(
        self,
        *,
        engine: PlannedEngine,
        chunk_size: int | None,
        memory: str | int | None,
        deterministic: bool,
        device: torch.device,
    ) -> None:
        self.engine, self.chunk_size, self.memory = engine, chunk_size, memory
        self.deterministic, self.device = deterministic, device
        self.plan: MemberPlan | None = None
        self._said = False

    def decide(self, attempt: Callable[[MemberEngine, int], object], count: int) -> None:
        """Make the plan.

        Args:
            attempt: takes the gradients of the first so many members by an engine.
            count: of members.
        """
        fixed = self.deterministic
        self.plan = plan_members(
            attempt,
            count,
            engine=self.engine,
            chunk_size=self.chunk_size,
            memory=memory_budget(self.memory, self.device, deterministic=fixed),
            device=self.device,
            deterministic=fixed,
        )

    def say(self) -> None:
        """Tell the log what has been decided, once."""
        if not self._said:
            log.info("%s", self.plan)
            self._said = True

    @property
    def forward_engine(self) -> MemberEngine:
        """How members predict: as planned, or else as was asked for."""
        given: MemberEngine = "loop" if self.engine == "loop" else "batched"
        return self.plan.engine if self.plan else given

    @property
    def undecided(self) -> bool:
        """Whether it is still open if vmap can take the members."""
        return self.plan is None and self.engine == "auto"

    def state(self) -> dict[str, Any]:
        """The plan, and what it was made for."""
        if self.plan is None:
            return {}
        plan = {
            "engine": self.plan.engine,
            "chunk_size": self.plan.chunk_size,
            "memory": self.memory,
            "device": self.device.type,
        }
        return {"plan": plan}

    def state_kinds(self) -> list[Kind]:
        """The plan, where there is one."""
        engine = choice(*get_args(MemberEngine))
        plan = mapping({"engine": engine, "chunk_size": maybe(whole(1)), "device": text})
        return [mapping({}, {"plan": maybe(plan)})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan of the run, unless something else is asked for now."""
        plan = state.get("plan")
        asked = {"engine": self.engine, "chunk_size": self.chunk_size, "memory": self.memory}
        if plan and plan["device"] == self.device.type and keeps(plan, **asked):
            note = ("as before the interruption",)
            self.plan = MemberPlan(plan["engine"], plan["chunk_size"], note)
            self._said = False
