"""What is kept of each of the M networks that a loop trains: its clipping, its best, its patience.

A single module is a population of one.

Axes: M members, or 1.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metalearn.models import Ensemble
from metalearn.schema import Kind, choice, like, map_of, mapping, text
from metalearn.trainers.members.not_finite import FreezeMember, NotFinitePolicy, RaiseError
from metalearn.trainers.members.rows import above, rows_of
from metalearn.trainers.members.standing import Standing
from metalearn.trainers.members.trained import trained_parameters, trained_state

__all__ = ["Accepted", "Population"]

log = logging.getLogger(__name__)

_SURELY_BELOW = 0.999  # of the limit: so far from it no rounding of the factor falls below 1

Accepted = tuple[Mapping[str, Tensor], float, float]
"""Clipped gradients, and for the record: mean loss and median norm of those that are trained."""


class Population:
    """Book-keeping of a module's networks, which never mix.

    The norm of a network's gradient is clipped by itself. Each is kept at its own best; one out of
    patience is frozen where it is, and the others go on. What happens to one whose loss, gradient
    or parameters are not finite is a policy: a single module's training ends (`RaiseError`), a
    member is put back to its best state and frozen (`FreezeMember`), until none is left.

    Args:
        module: an `Ensemble` of M members, or a single module.
        clip: largest norm of a network's gradient; None clips nothing.
        patience: validations without improvement after which a network is frozen.
        larger_is_better: of scores.
        beside: what is learnt beside the module, if anything.
        kept: ``"best"`` keeps each network at its best; ``"newest"``, where what counts is the
            whole run, at its last.

    Attributes:
        active: ``[M]``, whether a network is still trained.
        own: ``[M]``, whether it is trained by this process, where others train the rest.
        diverged: ``[M]``, whether it became not finite.
        endings: why a network is not trained any more, by its index.
        best: the `trained_state` with every network as it is kept.
        best_values, best_steps: ``[M]``, of each network's best validation; NaN and −1 before.
        best_value, best_step: the median of the ``best_values``, the last of the ``best_steps``.
        norms: ``[M]``, of the newest gradients before clipping.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        clip: float | None,
        patience: int | None,
        larger_is_better: bool,
        beside: nn.Module | None = None,
        kept: Literal["best", "newest"] = "best",
    ) -> None:
        self.module, self.beside = module, beside
        self.rows = rows_of(module, beside)
        self.clip, self.patience, self.kept = clip, patience, kept
        self.larger_is_better = larger_is_better
        stacked = isinstance(module, Ensemble)
        self.policy: NotFinitePolicy = FreezeMember() if stacked else RaiseError()
        count = self.rows.count
        self.active = torch.ones(count, dtype=torch.bool)
        self.own = torch.ones(count, dtype=torch.bool)
        self._stood = Standing(self.active, self.own)
        self.diverged = torch.zeros(count, dtype=torch.bool)
        self.endings: dict[int, str] = {}
        self.best: dict[str, Tensor] = {}
        self.best_values = torch.full((count,), math.nan, dtype=torch.float64)
        self.best_steps = torch.full((count,), -1)
        self.best_step, self.best_value = -1, math.nan
        self.stale = torch.zeros(count, dtype=torch.long)
        self.norms = torch.zeros(count, dtype=torch.float64)

    def clip_and_check(
        self,
        grads: Mapping[str, Tensor],
        losses: Tensor,
        *,
        step: int,
        suspects: Callable[[], str],
        known: tuple[Mapping[str, Tensor], Tensor] | None = None,
    ) -> Accepted:
        """Clip each network's gradient, and look whether all is finite.

        Args:
            grads: of the step, means over its batch.
            losses: ``[M]``.
            step: counted from 0.
            suspects: names the tasks or samples behind a value that is not finite.
            known: the gradients as they are clipped, and norms before that above the losses
                ``[2, M]``, where all this is computed; if it is finite it is given back.

        Raises:
            Ending: training cannot go on.
        """
        found = known[1][0] if known else self.rows.norms(grads)
        read = (known[1] if known else above(found, losses)).cpu()  # one copy, which waits
        stacked = isinstance(self.module, Ensemble)
        self.norms = read[0].to(torch.float64 if stacked else found.dtype)
        norms, values = self.norms.tolist(), read[1].tolist()
        standing = self._standing()
        lost = standing.lost(values, norms)
        if lost and known is not None:  # what was computed elsewhere ends nothing
            return self.clip_and_check(grads, losses, step=step, suspects=suspects)
        self._not_finite(lost, step, suspects)
        standing = self._standing() if lost else standing
        clipped = self._clipped(grads, norms, standing) if known is None else known[0]
        return clipped, *standing.shown(values, norms)

    def check_parameters(self, step: int) -> None:
        """Look whether all parameters are finite after ``step`` steps.

        Raises:
            Ending: training cannot go on.
        """
        lost = (self.active & ~self.rows.finite()).nonzero().flatten().tolist()
        self._not_finite(dict.fromkeys(lost, "parameters"), step, None)

    def record_validation(self, scores: Tensor, step: int) -> bool:
        """Take note of a validation's scores ``[M]``; whether anything is to be kept of it.

        The first validation is kept even where it is NaN.
        """
        values = scores.cpu().double()
        first = self.best_steps < 0
        gain = values > self.best_values if self.larger_is_better else values < self.best_values
        gain |= self.best_values.isnan() & ~values.isnan()
        better = first | (self.active & gain)
        if self.kept == "newest":
            better = torch.ones_like(better)
        self.stale = torch.where(better, 0, self.stale + 1)
        self.best_values = torch.where(better, values, self.best_values)
        self.best_steps = torch.where(better, step, self.best_steps)
        self._keep(better)
        self._freeze_impatient()
        self.best_step = int(self.best_steps.max())
        self.best_value = float(self.best_values.nanmedian())
        return bool(better.any())

    @property
    def stepped(self) -> Tensor:
        """``[M]``: those that an update changes; of others' it does not matter what becomes."""
        return self._standing().stepped

    @property
    def out_of_patience(self) -> bool:
        """Whether no network is trained any more, by this process or, as far as known, others."""
        return self._standing().over

    def nan_scores(self, scores: Tensor, monitor: str) -> str:
        """What that is still trained scored NaN, in words; empty where nothing did.

        Args:
            scores: ``[M]``.
            monitor: what a single module's score is called.
        """
        lost = scores.cpu().isnan() & self.active
        return self.policy.describe(lost.nonzero().flatten().tolist(), monitor)

    def unknown_weights(self) -> str:
        """What has weights that are not finite, in words; empty where nothing has.

        A member that diverged before it had a best state is known, and said to the log.
        """
        lost = (~self.rows.finite()).nonzero().flatten().tolist()
        known = [index for index in lost if self.diverged[index]]
        for index in known:
            log.warning("member %d has weights that are not finite: it diverged", index)
        rest = [index for index in lost if index not in known]
        return self.policy.describe(rest, "the module")

    def put_back(self, index: int, step: int, what: str) -> None:
        """Put a network that diverged back to its best state, and freeze it."""
        chosen = torch.arange(self.rows.count) == index
        with torch.no_grad():
            if self.best:
                self.rows.copy(self.best, trained_state(self.module, self.beside), chosen)
            every = trained_parameters(self.module, self.beside)
            grads = {n: p.grad for n, p in every.items() if p.grad is not None}
            for name, grad in self.rows.scaled(grads, (~chosen).double()).items():
                grads[name].copy_(grad)
        best_step = int(self.best_steps[index])
        since = f", put back to step {best_step}" if best_step >= 0 else ""
        self.diverged[index] = True
        self.freeze(index, f"diverged at step {step} ({what} not finite){since}")

    def freeze(self, index: int, why: str) -> None:
        """Train a network no more."""
        if self.active[index]:
            self.active[index] = False
            self.endings[index] = why
            self.policy.tell(index, why)

    def state(self) -> dict[str, Any]:
        """What is known of each member; a single module has no entries of its own."""
        if not isinstance(self.module, Ensemble):
            return {}
        return {
            "active": self.active,
            "diverged": self.diverged,
            "endings": {str(index): why for index, why in self.endings.items()},
            "best_values": self.best_values,
            "best_steps": self.best_steps,
            "member_stale": self.stale,
        }

    def state_kinds(self) -> list[Kind]:
        """What a checkpoint has to hold so that `load_state` can take it."""
        state = self.state()
        if not state:
            return [mapping({})]
        endings = map_of(choice(*map(str, range(self.rows.count))), text)
        return [mapping({n: like(v) for n, v in state.items()} | {"endings": endings})]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        if not isinstance(self.module, Ensemble):
            return
        self.active, self.diverged = state["active"].cpu(), state["diverged"].cpu()
        self.endings = {int(index): why for index, why in state["endings"].items()}
        self.best_values, self.best_steps = state["best_values"].cpu(), state["best_steps"].cpu()
        self.stale = state["member_stale"].cpu()
        self.policy.remember(self)

    def load_summary(self, best_step: int, best_value: float, stale: int) -> None:
        """Take what every checkpoint says of the best: of a single module it is all there is."""
        self.best_step, self.best_value = best_step, best_value
        if not isinstance(self.module, Ensemble):
            self.best_steps = torch.tensor([best_step])
            self.best_values = torch.tensor([best_value], dtype=torch.float64)
            self.stale = torch.tensor([stale])
            self.active.fill_(True)  # with the patience of now
            self.endings.clear()
            self._freeze_impatient()

    def summary(self) -> dict[str, Any]:
        """What every checkpoint says of the best."""
        stale = 0 if isinstance(self.module, Ensemble) else int(self.stale[0])
        return {"best_step": self.best_step, "best_value": self.best_value, "stale": stale}

    def _clipped(
        self, grads: Mapping[str, Tensor], norms: Sequence[float], standing: Standing
    ) -> Mapping[str, Tensor]:
        """Gradients of what is trained, each network's scaled to the limit."""
        below = self.clip is None or max(norms) < _SURELY_BELOW * self.clip
        if below and standing.whole:
            return grads
        factors = torch.ones_like(self.norms)
        if self.clip is not None:
            factors = (self.clip / (self.norms + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ has it
        return self.rows.scaled(grads, torch.where(self.active, factors, 0.0))

    def _standing(self) -> Standing:
        """Which networks are trained now."""
        if not self._stood.holds(self.active, self.own):
            self._stood = Standing(self.active, self.own)
        return self._stood

    def _freeze_impatient(self) -> None:
        if self.patience is None:
            return
        for index in (self.active & (self.stale >= self.patience)).nonzero().flatten().tolist():
            self.freeze(index, f"no better since step {int(self.best_steps[index])}")

    def _keep(self, better: Tensor) -> None:
        """Copy the better networks' part of the module's state into the best state."""
        if not self.best or better.all():
            self.best = trained_state(self.module, self.beside)
            for name, value in self.best.items():
                copied = isinstance(value, Tensor)  # else a layer's own get_extra_state()
                self.best[name] = value.detach().clone() if copied else copy.deepcopy(value)
        else:
            self.rows.copy(trained_state(self.module, self.beside), self.best, better)

    def _not_finite(
        self, lost: Mapping[int, str], step: int, suspects: Callable[[], str] | None
    ) -> None:
        if lost or (self.endings and self.diverged.all()):
            self.policy.not_finite(self, lost, step, suspects)
