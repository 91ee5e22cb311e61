"""How the runs that are shaped go on: their length, their optimiser, where they start.

Axes: K steps of a run, R whole runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from metalearn.core import InnerOptimizer, adam, adamw, sgd
from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import check_fields, check_settings, known_fields
from metalearn.trainers.hyper.kinds import RunOptimizer
from metalearn.trainers.loop.settings import LoopSettings

__all__ = ["RunSettings", "optimizer_gradients"]


@known_fields
@dataclass(frozen=True)
class RunSettings:
    """The runs whose end an outer loss is of, and the whole runs that are scored.

    Attributes:
        steps: K, of the run of an outer step.
        batch_size: training examples of a step.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        lr: learning rate, above 0.
        momentum: of ``sgd``, in [0, 1).
        weight_decay: at least 0.
        schedule: of the rate over a run: ``"constant"``, ``"cosine"`` or ``"linear"``.
        start: where the run of an outer step starts. ``"fixed"``: at the weights of the model, with
            the same batches every time. ``"fresh"``: at weights, and with an order of batches, of a
            seed that belongs to the step, or to each run of a step that is accumulated over some.
            ``"warm"``: where the run before ended, with its optimiser's state and the batches that
            come next.
        whole_steps: of the runs that are validated and tested; None is K.
        whole_runs: R, how many of them. Run r has the order of batches, and the network where
            there is a factory, of the trainer's seed + r; run 0 starts at the model.

    Raises:
        SettingError: a value out of range.
    """

    steps: int = 100
    batch_size: int = 64
    optimizer: RunOptimizer = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    start: Literal["fixed", "fresh", "warm"] = "fixed"
    whole_steps: int | None = None
    whole_runs: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "whole_runs"):
            check_whole(f"inner.{name}", getattr(self, name), 1)
        if self.whole_steps is not None:
            check_whole("inner.whole_steps", self.whole_steps, 1)
        check_mode("inner.optimizer", self.optimizer, get_args(RunOptimizer))
        check_mode("inner.schedule", self.schedule, ("constant", "cosine", "linear"))
        check_mode("inner.start", self.start, ("fixed", "fresh", "warm"))
        check_number("inner.lr", self.lr, above=0)
        check_number("inner.momentum", self.momentum, least=0, below=1)
        check_number("inner.weight_decay", self.weight_decay, least=0)

    @classmethod
    def of(cls, given: RunSettings | Mapping[str, Any] | None) -> RunSettings:
        """These settings of a mapping, or as they are.

        Raises:
            SettingError: no such setting, or a value out of range.
        """
        if isinstance(given, cls):
            return given
        if given is not None and not isinstance(given, Mapping):
            accepted = "RunSettings, a mapping of them, or null is needed"
            raise SettingError("inner", type(given).__name__, accepted)
        settings = dict(given or {})
        check_settings(cls, settings, "inner.")
        return cls(**settings)

    @property
    def scored_steps(self) -> int:
        """Of whole runs."""
        return self.steps if self.whole_steps is None else self.whole_steps

    def rates(self, steps: int, like: Tensor) -> Tensor:
        """``[K]`` of an ordinary run of so many steps."""
        factor = LoopSettings(steps=steps, schedule=self.schedule).rate
        return like.new_tensor([self.lr * factor(k) for k in range(steps)])

    def made_optimizer(
        self, in_optimizer: Mapping[str, Tensor], steps: int, like: Tensor
    ) -> InnerOptimizer:
        """The optimiser of a run of so many steps, with what is given in place of its own."""
        lr: float | Tensor = self.lr
        if self.schedule != "constant":
            lr = self.rates(steps, like)
        lr = in_optimizer.get("lr", lr)
        if self.optimizer == "sgd":
            momentum = in_optimizer.get("momentum", self.momentum)
            return sgd(lr, momentum=momentum, weight_decay=self.weight_decay)
        make = adam if self.optimizer == "adam" else adamw
        return make(lr, weight_decay=self.weight_decay)


def optimizer_gradients(found: Any, in_optimizer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a gradient through a run, that of what is in its optimiser, by name."""
    by_name = found if isinstance(found, dict) else {"lr": found}
    return {name: by_name[name] for name in in_optimizer}
