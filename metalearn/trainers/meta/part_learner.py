"""MAML of which the inner loop changes a part of the network: the head, or all but the head.

Axes: T tasks, K inner steps.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal

from torch import nn

from metalearn.core import Plan
from metalearn.core.meta.shared_part import LossInParts
from metalearn.errors import SettingError
from metalearn.signatures import checked
from metalearn.trainers.meta.head import head_names
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.settings import MAML
from metalearn.types import TaskBatch

__all__ = ["PartLearner"]


class PartLearner(MetaLearner):
    """A `MetaLearner` whose inner loop leaves the body, or the head, of the network alone.

    Args:
        module: as for `MetaLearner`.
        maml: as for `MetaLearner`; ``frozen`` is this learner's own, so None is needed, and a
            method other than ``"reptile"``.
        kind: as for `MetaLearner`.
        head: shell-style pattern, or several, over names of parameters that are the head; None
            takes the module's submodule ``head`` where it has one, else the last layer with
            parameters, in the order of the module.

    Raises:
        SettingError: as `MetaLearner`; ``maml.frozen``; a head that is unclear, or that leaves
            nothing to adapt.
    """

    adapts_head: ClassVar[bool]
    """Whether the inner loop changes the head, or what is not the head."""

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        head: str | Sequence[str] | None = None,
    ) -> None:
        if maml is not None and maml.frozen is not None:
            accepted = "null is needed: learner.head says what the inner loop leaves alone"
            raise SettingError("maml.frozen", maml.frozen, accepted)
        if maml is not None and maml.method == "reptile":
            accepted = "another is needed: by this one, what does not adapt is not learnt"
            raise SettingError("maml.method", maml.method, accepted)
        self.head_patterns = head
        super().__init__(module, maml, kind=kind)

    @cached_property
    def head(self) -> tuple[str, ...]:
        """Names of the trained parameters that are the head."""
        network = self.network
        trained = list(network.own(network.rows()[0]))
        every = network.rows()[0]
        if network.count is None:
            every = {**dict(network.module.named_parameters()), **{n: every[n] for n in trained}}
        found = head_names(every, trained, self.head_patterns)
        if not self.adapts_head and len(found) == len(trained):
            accepted = "parameters that are not the head are needed, for the inner loop to change"
            raise SettingError("learner.head", ", ".join(found), accepted)
        return tuple(found)

    @property
    def frozen(self) -> list[str]:
        """The names of the body, or of the head, and of what is learnt beside the network."""
        learnt = self.network.learnt
        beside = [] if learnt is None else learnt.others
        own = [name for name in self.network.own(self.params) if name not in beside]
        names = [name for name in own if (name in self.head) != self.adapts_head]
        return [glob.escape(name) for name in [*names, *beside]]

    @checked
    def prepare(
        self,
        tasks: TaskBatch,
        task_count: int,
        *,
        deterministic: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Plan:
        """See `MetaLearner.prepare`; the plan says what adapts."""
        plan = super().prepare(tasks, task_count, deterministic=deterministic, check=check)
        about = [f"adapts {', '.join(self.adapting())}"]
        if isinstance(self.descended, LossInParts):
            about.append("features are computed once for all inner steps")
        self.plan = replace(plan, notes=(*about, *plan.notes))
        return self.plan
