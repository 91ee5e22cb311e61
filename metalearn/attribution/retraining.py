"""Subsets of the training examples, each trained anew, all of them as one stack.

Axes: M subsets, N training examples, R targets, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.attribution.target_samples import checked_targets
from metalearn.core.checks import as_device
from metalearn.core.tree import check_tensors
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError, SubsetsDivergedError, check_whole
from metalearn.models import Ensemble
from metalearn.signatures import check_settings, checked
from metalearn.trainers.loop.plans import memory_budget
from metalearn.trainers.loop.stop_signal import Stopped
from metalearn.trainers.supervised.ensemble_evaluation import Validation
from metalearn.trainers.supervised.ensemble_settings import checked_seeds, own_settings
from metalearn.trainers.supervised.ensemble_training import EnsembleTraining
from metalearn.trainers.supervised.member_weights import made_weights

__all__ = ["Retrained", "retrain_subsets"]

_COPIES = 6  # of a member's parameters: themselves, gradients, two moments, the best, a result
_GIVEN = ("member_weights", "seeds")  # as arguments of their own
_OF_RUNS = (
    "folder", "tracker", "metrics", "ood", "monitor", "member_curves", "patience", "diagnostics",
    "diagnostics_every", "eval_every", "log_every", "checkpoint_every", "shuffle",
)  # fmt: skip
_OF_MEMBERS = {"lr": None, "weight_decay": None, "label_smoothing": 0.0, "dropout": None}


class Retrained(NamedTuple):
    """What became of the targets in networks that were trained on M subsets."""

    losses: Tensor
    """``[M, R]``: the loss of each target in the loss's own units, without label smoothing."""
    outputs: Tensor
    """``[M, R, C]``."""


@checked
def retrain_subsets(
    network: nn.Module | Callable[..., nn.Module],
    data: SupervisedData,
    weights: Tensor,
    targets: tuple[Tensor, Tensor],
    *,
    seeds: int | Sequence[int] = 0,
    at_once: int | None = None,
    **settings: Annotated[Any, EnsembleTraining],
) -> Retrained:
    """Train a network anew under every row of weights, and score the targets at the end.

    All begin with the same weights, see the same batches, the same augmentation and the same masks
    of dropout, so that they differ by what they lack alone. On a batch of B samples subset m
    descends (1/B)·Σ w[m, i]·ℓ_i. Nothing is validated, recorded or saved: outcomes are those of the
    last step, of the averaged weights where ``average`` keeps an average.

    Args:
        network: that all begin with, which stays as it is; or a function that makes it from a seed,
            as `Ensemble.from_factory` calls it.
        data: whose training part has N examples.
        weights: ``[M, N]`` in the order of ``data.splits["train"]``, at least 0; 0 leaves out.
            `random_subsets` draws some.
        targets: inputs ``[R, ...]`` and targets of R samples, such as a part of
            ``data.part("test")``.
        seeds: of batches, augmentation and dropout, and of the network where it is made; one for
            all, or M where subsets are to differ in them too.
        at_once: subsets that are trained at once, as one stack; None: as many as memory has room
            for. The outcomes are the same, to rounding.
        settings: the others of `metalearn.trainers.EnsembleTrainer`, as the network was trained:
            ``steps``, ``batch_size``, ``lr``, ``optimizer``, ``loss``, ``schedule``, …
            ``engine="auto"`` is batched wherever vmap can take the network.

    Raises:
        SettingError: a setting that cannot work, or that retraining has no use for; weights or
            targets that do not fit the data; a loss of one's own that gives no losses of samples.
        SubsetsDivergedError: that, with the numbers of those of the stack.
    """
    count = _count(weights)
    table = made_weights(weights, count, data.size("train"), name="weights")
    assert table is not None
    x, y = checked_targets(targets, data)
    check_settings(EnsembleTraining, settings, "", without=(*_GIVEN, *_OF_RUNS))
    streams = _streams(seeds, count)
    own = own_settings(count, *(settings.get(name, value) for name, value in _OF_MEMBERS.items()))
    starts, free, parts = _starts(network, streams), _free_memory(settings), []
    size = _stack_size(at_once, starts[0], count, free)
    for first in range(0, count, size):
        rows = slice(first, first + size)
        mine = {name: values[rows] for name, values in own.items() if values is not None}
        training = EnsembleTraining(
            Ensemble.from_modules(starts[rows]),
            data,
            Validation(skipped=True),
            seeds=streams[rows],
            member_weights=table[rows],
            **{**settings, **mine, **_of_loops(settings, free)},
        )
        parts.append(_outcomes(training, x, y, first))
    return Retrained(*(torch.cat(part) for part in zip(*parts)))


def _outcomes(training: EnsembleTraining, x: Tensor, y: Tensor, first: int) -> Retrained:
    """Train one stack, whose first subset has this number, and score the targets."""
    loop = training.loop()
    result = loop.fit()
    if result.signal is not None:
        raise Stopped
    lost = loop.population.diverged.nonzero().flatten().tolist()
    if lost:
        raise SubsetsDivergedError([first + row for row in lost])
    with loop.averaged(), torch.no_grad():
        outputs = training.logits(training.ensemble, x)
        losses = training.loss.each(outputs, y.to(outputs.device))
    return Retrained(losses.detach(), outputs.detach())


def _streams(seeds: Any, count: int) -> list[int]:
    """A seed for each subset."""
    one = isinstance(seeds, int) and not isinstance(seeds, bool)
    if not one and not (isinstance(seeds, Sequence) and not isinstance(seeds, str)):
        raise SettingError("seeds", seeds, "a whole number, or one for each subset, is needed")
    return checked_seeds([seeds] * count if one else seeds, count)


def _starts(network: Any, seeds: Sequence[int]) -> list[nn.Module]:
    """The network that each subset begins with; those of one seed are one object."""
    if isinstance(network, nn.Module):
        return [network] * len(seeds)
    distinct = list(dict.fromkeys(seeds))
    made = Ensemble.from_factory(network, distinct)
    members = dict(zip(distinct, made.members()))
    return [members[seed] for seed in seeds]


def _free_memory(settings: dict[str, Any]) -> int | None:
    """Bytes that a stack may take; None where that does not matter or is not known."""
    fixed = settings.get("deterministic") is True
    return memory_budget(None, as_device(settings.get("device", "cpu")), deterministic=fixed)


def _stack_size(at_once: int | None, network: nn.Module, count: int, free: int | None) -> int:
    """How many subsets are trained at once."""
    if at_once is not None:
        check_whole("at_once", at_once, 1)
        return min(at_once, count)
    size = _COPIES * sum(p.numel() * p.element_size() for p in network.parameters())
    if free is None or size * count <= free:
        return count
    stacks = math.ceil(count / max(1, free // size))
    return math.ceil(count / stacks)


def _of_loops(settings: dict[str, Any], free: int | None) -> dict[str, Any]:
    """Settings by which a loop times nothing, and looks at nothing before its last step."""
    steps = settings.get("steps", 1000)
    plan = {"deterministic": True, "memory": settings.get("memory", free)}
    return {**plan, "eval_every": steps, "log_every": steps, "checkpoint_every": steps}


def _count(weights: Tensor) -> int:
    check_tensors(weights, "weights")
    if weights.dim() != 2 or not len(weights):
        accepted = "[M, N] is needed, a row for each of at least one subset"
        raise SettingError("shape of weights", list(weights.shape), accepted)
    return len(weights)
