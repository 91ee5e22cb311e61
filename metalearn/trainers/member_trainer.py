"""The loop for M members at once: each is clipped, scored, stopped and kept by itself.

Axes: M members.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.errors import NonFiniteError
from metalearn.models import Ensemble, Stack
from metalearn.schema import Kind, choice, like, map_of, mapping, text
from metalearn.trainers.base import StepReport, Trainer
from metalearn.trainers.diagnostics import GradientUnits
from metalearn.trainers.members.update import MemberUpdate
from metalearn.trainers.nan_scores import named

__all__ = ["MemberTrainer"]

log = logging.getLogger(__name__)


class MemberTrainer(Trainer):
    """A `Trainer` of an `Ensemble`, in which members never mix, or of a single module.

    The norm of a member's gradient is clipped by itself. A member whose loss or gradient is not
    finite is put back to its best state and frozen; a member out of patience is frozen where it
    is; the others go on. Where every member has diverged, training ends with an error; where some
    have and the others are out of patience, as by patience. The best state is each member's own
    best. A subclass gives ``member_losses`` with every `StepReport` and `member_scores` with every
    validation; it leaves out members that are not `active`.

    Attributes:
        ensemble: what is trained; None for a single module, for which all is as in `Trainer`.
        active: ``[M]``, whether a member is still trained.
        diverged: ``[M]``, whether a member became not finite.
        endings: why a member is not, by its index.
    """

    ensemble: Ensemble | None

    def begin_members(
        self, rates: Sequence[float] | None = None, decays: Sequence[float] | None = None
    ) -> None:
        """Set up what is kept for each member; called once by the subclass.

        Args:
            rates: learning rate of each; None is the optimiser's.
            decays: weight decay of each; None is the optimiser's.
        """
        self.endings: dict[int, str] = {}
        if self.ensemble is None:
            return
        self._members = self.ensemble
        count = len(self._members)
        self.active = torch.ones(count, dtype=torch.bool)
        self.diverged = torch.zeros(count, dtype=torch.bool)
        self.best_values = torch.full((count,), math.nan, dtype=torch.float64)
        self.best_steps = torch.full((count,), -1)
        self._member_stale = torch.zeros(count, dtype=torch.long)
        self._member_update = MemberUpdate(self._members, self.optimizer, rates, decays)
        if rates is not None:
            self._rates = [self._member_update.base]

    @abstractmethod
    def member_scores(self) -> Tensor:
        """``[M]``: the newest validation's number that decides what is best for a member."""

    def member_units(self, grads: Mapping[str, Tensor]) -> GradientUnits:
        """The gradients of the active members as units of one population."""
        assert self.ensemble is not None
        chosen = self.active.nonzero().flatten()
        chunk = {name: grad[chosen.to(grad.device)][None] for name, grad in grads.items()}
        limit = math.inf if self.settings.clip is None else self.settings.clip
        labels = [str(index) for index in chosen.tolist()]
        return GradientUnits("member", lambda: [[chunk]], len(chosen), limit, labels)

    def accept(self, step: int, report: StepReport) -> tuple[float, float]:
        """Clip each member's gradient; mean loss and median norm of those that are trained.

        Raises:
            NonFiniteError: every member has diverged.
        """
        if report.member_losses is None:
            return super().accept(step, report)
        norms = self._member_norms()
        losses = report.member_losses.detach().cpu().double()
        finite = torch.isfinite(losses) & torch.isfinite(norms)
        lost = (self.active & ~finite).nonzero().flatten().tolist()
        self._put_back(
            {i: f"loss {losses[i]:g} and gradient norm {norms[i]:g}" for i in lost}, step
        )
        self.norms = norms
        factors = torch.ones_like(norms)
        if self.settings.clip is not None:  # as torch.nn.utils.clip_grad_norm_ does it
            factors = (self.settings.clip / (norms + 1e-6)).clamp(max=1.0)
        for stack, rows in self._rows():
            kept, scale = self.active[rows], factors[rows]
            for parameter in stack.parameters():
                if parameter.grad is not None and not (kept.all() and (scale == 1).all()):
                    parameter.grad = _scaled(parameter.grad, torch.where(kept, scale, 0.0))
        if not self.active.any():
            return math.nan, math.nan
        return float(losses[self.active].mean()), float(norms[self.active].median())

    def update(self, factor: float) -> None:
        """Take the outer step of the members that are active."""
        if self.ensemble is None:
            super().update(factor)
            return
        self._member_update(self.active, factor)

    def check_parameters(self) -> None:
        """Put back and freeze members whose parameters are not finite.

        Raises:
            NonFiniteError: every member has diverged.
        """
        if self.ensemble is None:
            super().check_parameters()
            return
        lost = (self.active & ~self._finite_members()).nonzero().flatten().tolist()
        self._put_back(dict.fromkeys(lost, "parameters"), self.step)

    def nan_validation(self, numbers: Mapping[str, float]) -> str:
        """The same by member, of those that are trained."""
        if self.ensemble is None:
            return super().nan_validation(numbers)
        lost = self.member_scores().cpu().isnan() & self.active
        return named(lost.nonzero().flatten().tolist())

    def judge(self, numbers: Mapping[str, float]) -> bool:
        """Keep the state of every member that is better than ever.

        ``best_value`` is the median over members of each one's best.
        """
        if self.ensemble is None:
            return super().judge(numbers)
        values = self.member_scores().double().cpu()
        first = self.best_steps < 0
        gain = values > self.best_values if self.larger_is_better else values < self.best_values
        gain |= self.best_values.isnan() & ~values.isnan()
        better = first | (self.active & gain)
        self._member_stale = torch.where(better, 0, self._member_stale + 1)
        self.best_values = torch.where(better, values, self.best_values)
        self.best_steps = torch.where(better, self.step, self.best_steps)
        self._keep(better)
        patience = self.settings.patience
        if patience is not None:
            for index in (self.active & (self._member_stale >= patience)).nonzero().flatten():
                self._end(int(index), f"no better since step {int(self.best_steps[index])}")
        self.best_step = int(self.best_steps.max())
        self.best_value = float(self.best_values.nanmedian())
        return bool(better.any())

    def out_of_patience(self) -> bool:
        """Whether no member is trained any more."""
        if self.ensemble is None:
            return super().out_of_patience()
        return not bool(self.active.any())

    def extra_state(self) -> dict[str, Any]:
        """What is known of each member."""
        if self.ensemble is None:
            return {}
        return {
            "active": self.active,
            "diverged": self.diverged,
            "endings": {str(index): why for index, why in self.endings.items()},
            "best_values": self.best_values,
            "best_steps": self.best_steps,
            "member_stale": self._member_stale,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take what `extra_state` gave."""
        if self.ensemble is None:
            return
        self.active, self.diverged = state["active"].cpu(), state["diverged"].cpu()
        self.endings = {int(index): why for index, why in state["endings"].items()}
        self.best_values, self.best_steps = state["best_values"].cpu(), state["best_steps"].cpu()
        self._member_stale = state["member_stale"].cpu()

    def extra_kinds(self) -> list[Kind]:
        """Of each member, if there are members."""
        kinds = super().extra_kinds()
        if self.ensemble is None:
            return kinds
        state = MemberTrainer.extra_state(self)
        endings = map_of(choice(*map(str, range(len(self._members)))), text)
        return [*kinds, mapping({n: like(v) for n, v in state.items()} | {"endings": endings})]

    def not_finite(self) -> str:
        """Members that are not finite; one that diverged before it had a best state is known."""
        if self.ensemble is None:
            return super().not_finite()
        lost = (~self._finite_members()).nonzero().flatten().tolist()
        known = [index for index in lost if self.diverged[index]]
        for index in known:
            log.warning("member %d has weights that are not finite: it diverged", index)
        return ", ".join(f"member {index}" for index in lost if index not in known)

    def _member_norms(self) -> Tensor:
        """``[M]``: norm of each member's gradient."""
        norms = torch.zeros(len(self._members), dtype=torch.float64)
        for stack, rows in self._rows():
            grads = [p.grad for p in stack.parameters() if p.grad is not None]
            squares = [_by_member(g).square().sum(1) for g in grads]
            if squares:
                norms[rows] = torch.stack(squares).sum(0).sqrt().cpu().double()
        return norms

    def _finite_members(self) -> Tensor:
        """``[M]``: whether all parameters of a member are finite."""
        finite = torch.ones(len(self._members), dtype=torch.bool)
        for stack, rows in self._rows():
            for parameter in stack.parameters():
                finite[rows] &= _by_member(torch.isfinite(parameter.detach())).all(1).cpu()
        return finite

    def _put_back(self, lost: Mapping[int, str], step: int) -> None:
        """Freeze members that diverged, by what is not finite; NonFiniteError if all have."""
        for index, what in lost.items():
            self._put_back_one(index, step, what)
        if lost and self.diverged.all():
            ends = "; ".join(f"member {i}: {why}" for i, why in sorted(self.endings.items()))
            path = self.save(f"non_finite_step_{step}")
            self.tracker.flush()
            where = f"; their best states are in {path}" if path else ""
            raise NonFiniteError(f"step {step}: every member has diverged ({ends}){where}")

    def _put_back_one(self, index: int, step: int, what: str) -> None:
        """The same for one member."""
        stack, row = self._members.place(index)
        best = _rows_of(self._best, self._members, stack)
        with torch.no_grad():
            for name, value in stack.state_dict(keep_vars=True).items():
                if name in best:
                    value[row] = best[name][row]
                if value.grad is not None:
                    value.grad[row] = 0
        best_step = int(self.best_steps[index])
        since = f", put back to step {best_step}" if best_step >= 0 else ""
        self.diverged[index] = True
        self._end(index, f"diverged at step {step} ({what} not finite){since}")

    def _end(self, index: int, why: str) -> None:
        if self.active[index]:
            self.active[index] = False
            self.endings[index] = why
            log.warning("member %d is not trained any more: %s", index, why)

    def _keep(self, better: Tensor) -> None:
        """Copy the rows of the better members into the best state."""
        if not self._best or better.all():
            self._best = {n: v.detach().clone() for n, v in self.module.state_dict().items()}
            return
        for stack, rows in self._rows():
            best, chosen = _rows_of(self._best, self._members, stack), better[rows]
            for name, value in stack.state_dict().items():
                best[name][chosen] = value[chosen]

    def _rows(self) -> list[tuple[Stack, Tensor]]:
        """Each stack with the members in its rows."""
        return [
            (stack, torch.tensor(stack.indices))
            for stack in self._members.stacks
            if isinstance(stack, Stack)
        ]


def _rows_of(state: Mapping[str, Tensor], ensemble: Ensemble, stack: Stack) -> dict[str, Tensor]:
    """The part of an ensemble's state that is a stack's, by the stack's names."""
    number = [s is stack for s in ensemble.stacks].index(True)
    prefix = f"stacks.{number}."
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _by_member(values: Tensor) -> Tensor:
    """``[M, ...]`` as ``[M, numbers of a member]``."""
    return values.unsqueeze(-1).flatten(1)


def _scaled(grad: Tensor, factors: Tensor) -> Tensor:
    """Each row times its factor; rows with factor 0 are 0 even where they are not finite."""
    factors = factors.to(grad).view(-1, *(1,) * (grad.dim() - 1))
    return torch.where(factors == 0, 0.0, grad * factors)
