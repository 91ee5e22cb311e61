"""Scores of all examples by every method that is asked for, of one network or of members.

Axes: M members, R targets, N training examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metalearn.attribution.scored_network import DOUBTS, METHODS, SELF_METHODS, ScoredNetwork
from metalearn.attribution.similarity import of_length_one
from metalearn.errors import SettingError
from metalearn.near_names import check_known
from metalearn.ranks import Ranks
from metalearn.signatures import checked
from metalearn.stretches import stretch

__all__ = ["Attributed", "attribute", "attribute_by_ranks", "correlation_of_members"]


@dataclass
class Attributed:
    """What `attribute` found."""

    by_member: dict[str, Tensor] = field(default_factory=dict)
    """Method to ``[M, R, N]``."""
    self_scores: dict[str, Tensor] = field(default_factory=dict)
    """Method to ``[N]``, the mean over members."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each method, all members together."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Methods that this network or its data have nothing for, and why."""
    warnings: list[str] = field(default_factory=list)
    """Why some of it should not be trusted."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """Method to ``[R, N]``: the mean over members, which is the score for their mean loss."""
        return {name: found.mean(0) for name, found in self.by_member.items()}

    @property
    def disagreement(self) -> dict[str, float]:
        """One minus the mean correlation of two members' scores of a target, by method.

        It is 0 where members agree what mattered, 1 where they have nothing in common.
        """
        return {
            name: 1 - float(correlation_of_members(found).mean())
            for name, found in self.by_member.items()
            if len(found) > 1
        }


@checked
def attribute(
    networks: Sequence[ScoredNetwork],
    methods: Sequence[str] = tuple(METHODS),
    self_methods: Sequence[str] = (),
    *,
    numbers: Sequence[int] | None = None,
) -> Attributed:
    """Run methods by name; one that cannot be has its reason in ``left_out``.

    Args:
        networks: M, with the same targets and examples.
        methods: names of `METHODS`.
        self_methods: names of `SELF_METHODS`.
        numbers: by which warnings tell of several networks; None counts them from 0.

    Raises:
        SettingError: no network, a name that is not known, or another count of numbers.
    """
    if not networks:
        raise SettingError("networks", [], "at least one network is needed")
    for setting, names, known in (
        ("methods", methods, METHODS),
        ("self_methods", self_methods, SELF_METHODS),
    ):
        for name in names:
            check_known(setting, name, tuple(known))
    named: Sequence[int] = range(len(networks)) if numbers is None else numbers
    if len(named) != len(networks):
        accepted = f"None is needed, or {len(networks)}, one for each network"
        raise SettingError("numbers", len(named), accepted)
    found = Attributed()
    found.by_member |= _run(networks, {name: METHODS[name] for name in methods}, found)
    alone = _run(networks, {name: SELF_METHODS[name] for name in self_methods}, found)
    found.self_scores |= {name: scores.mean(0) for name, scores in alone.items()}
    several = len(networks) > 1 or numbers is not None
    for number, network in zip(named, networks):
        for name in found.by_member:
            if name in DOUBTS and (warning := DOUBTS[name](network)):
                of = f"member {number}: " if several else ""
                found.warnings.append(f"{of}{name}: {warning}")
    return found


def attribute_by_ranks(
    networks: Sequence[ScoredNetwork],
    methods: Sequence[str],
    self_methods: Sequence[str],
    ranks: Ranks,
    *,
    numbers: Sequence[int] | None = None,
) -> Attributed:
    """What `attribute` finds of all networks; each rank brings some, in their order, or none.

    Warnings and what is left out stand in the order in which one process tells of them. Seconds
    are those of the rank that took longest.
    """
    own = attribute(networks, methods, self_methods, numbers=numbers) if networks else None
    ranks.gather()
    told = None if own is None else {**vars(own), "networks": len(networks)}
    parts = [part for part in ranks.of_each(told) if part is not None]
    reasons: dict[str, str] = {}
    for part in parts:
        reasons = part["left_out"] | reasons  # the first that has one
    left_out = {name: reasons[name] for name in (*methods, *self_methods) if name in reasons}
    whole = Attributed(left_out=left_out)
    for name in (*methods, *self_methods):
        if name in left_out:
            continue
        whole.seconds[name] = max(part["seconds"][name] for part in parts)
        if name in methods:
            whole.by_member[name] = torch.cat([part["by_member"][name] for part in parts])
        else:
            sums = [part["self_scores"][name] * part["networks"] for part in parts]
            counts = [part["networks"] for part in parts]
            whole.self_scores[name] = torch.stack(sums).sum(0) / sum(counts)
    for part in parts:
        whole.warnings += part["warnings"]
    return whole


def _run(
    networks: Sequence[ScoredNetwork],
    methods: Mapping[str, Callable[[ScoredNetwork], Tensor]],
    found: Attributed,
) -> dict[str, Tensor]:
    """Scores of each method, members in front."""
    scores: dict[str, Tensor] = {}
    with stretch("scoring", len(methods) * len(networks), "methods × networks") as tell:
        for name, method in methods.items():
            started, parts = time.perf_counter(), []
            try:
                for network in networks:
                    parts.append(method(network).cpu())
                    tell(1)
            except SettingError as error:
                found.left_out[name] = str(error)
                tell(len(networks) - len(parts))
                continue
            found.seconds[name] = time.perf_counter() - started
            scores[name] = torch.stack(parts)
    return scores


def correlation_of_members(scores: Tensor) -> Tensor:
    """Of each target ``[R]``: the mean correlation of two members' scores, of ``[M, R, N]``."""
    wide = scores.double()
    centred = wide - wide.mean(-1, keepdim=True)
    rows = of_length_one(centred.flatten(0, 1)).reshape(scores.shape)
    gram = torch.einsum("mrn,krn->rmk", rows, rows)
    count = len(scores)
    off = gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(-1)
    return off / (count * (count - 1))
