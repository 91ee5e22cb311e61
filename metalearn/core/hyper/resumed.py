"""Whether a walk that goes on is that of the same run: what a snapshot is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.core.float64 import widest
from metalearn.core.hyper.run import Run
from metalearn.core.tree import leaves
from metalearn.errors import SettingError

__all__ = ["check_identity", "check_same_loss", "identity_of"]

_SLOPES = (1e-8, 1.0, -0.5, 2.0)  # tried gradients; the first shows what is added to a root
_ROUNDING = 1e-6  # by which steps on another device may differ
_SHOWN = {"start": "other parameters", "optimizer": "another one", "state": "another one"}


def identity_of(run: Run) -> dict[str, Any]:
    """What of a run has to be the same where a gradient goes on: numbers, tensors and lists alone.

    An optimiser is known by what it learns, and by where a few steps lead that it takes along given
    gradients, so that any pure pair can be told from another; its state by the same.
    """
    loop = run.loop
    learnt = [leaf.detach() for leaf in leaves(loop.optimizer.learnt)]
    return {
        "steps": run.steps,
        "start": run.start,
        "frozen": [not moves for moves in loop.moving],
        "optimizer": [_tried(run, loop.start(run.start)), loop.optimizer.clip_norm, learnt],
        "state": _tried(run, run.state),
    }


def check_identity(resume: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a snapshot in which something is other than it is now.

    Raises:
        SettingError: names the first that is.
    """
    for name, value in own.items():
        if name not in resume or not _alike(resume[name], value):
            shown = _SHOWN.get(name, resume.get(name))
            accepted = f"the snapshot of a gradient with the same {name} is needed"
            raise SettingError("resume", f"{name}: {shown}", accepted)


def check_same_loss(name: str, batch: str, given: Tensor, own: Tensor) -> None:
    """Refuse to go on where a loss of the same parameters is another than it was.

    Raises:
        SettingError: names the loss and its batch.
    """
    how: Any = {"rtol": 1e-3, "atol": 1e-6, "equal_nan": True}
    if own.shape != given.shape or not torch.allclose(own.detach(), given.to(own), **how):
        accepted = f"the snapshot of a gradient of the same {name.replace('_', ' ')} is needed"
        raise SettingError("resume", f"another {name} or {batch}", accepted)


@torch.no_grad()
def _tried(run: Run, state: Any) -> list[float]:
    """Norms of the leaves that move after steps from 1 along given gradients, two of each."""
    values = [torch.ones_like(v) for v in run.start]
    ones = run.loop.adapting(values)
    for slope in _SLOPES:
        values, state = run.loop.advance(values, state, [slope * one for one in ones])
    return [norm for value in run.loop.adapting(values) for norm in _norms(value)]


def _norms(value: Tensor) -> list[float]:
    """Of all elements alike, and with weights that rise along them."""
    flat = widest(value).flatten()
    ramp = torch.linspace(1, 2, len(flat), dtype=flat.dtype, device=flat.device)
    return [float(flat.norm()), float((flat * ramp).norm())]


def _alike(given: Any, own: Any) -> bool:
    """Equal; numbers that were computed, to rounding."""
    if isinstance(own, Tensor):
        same = isinstance(given, Tensor) and given.shape == own.shape
        return same and torch.equal(given.to(own.device), own)
    if isinstance(own, Sequence) and not isinstance(own, str):
        if not isinstance(given, Sequence) or len(given) != len(own):
            return False
        return all(_alike(a, b) for a, b in zip(given, own))
    if isinstance(own, float) and isinstance(given, float):
        both_nan = math.isnan(given) and math.isnan(own)
        return both_nan or math.isclose(given, own, rel_tol=_ROUNDING)
    return bool(given == own)
