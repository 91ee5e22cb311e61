"""What sharing a training among many cards would give: a calculation, of which nothing is measured.

Bytes are counted where ranks meet, floating-point operations by torch, both of the library's own
code (`metalearn.benchmarks.counted_steps`); how long they take follows from a model of the machine.

Axes: R ranks, one a card; N cards of a node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metalearn.benchmarks.counted_steps import CountedStep

__all__ = [
    "CARDS",
    "CLUSTERS",
    "Cluster",
    "Link",
    "Sharing",
    "hierarchical_seconds",
    "ring_seconds",
    "scaling_table",
]

CARDS = (8, 64, 512)
_RATE = 1e14
"""Floating-point operations a second: a fifth of what an H100 (SXM) has for dense TF32 products."""
_MOST = 2**20


@dataclass(frozen=True)
class Link:
    """A way between two cards, or two nodes, in one direction."""

    bandwidth: float
    """Bytes a second."""
    latency: float
    """Seconds from the begin of a message to its first byte."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of N cards."""

    within: Link
    """Between two cards of a node."""
    between: Link
    """Between two nodes: what all cards of one share."""
    node: int = 8
    """N."""


_NVLINK = Link(450e9, 3e-6)  # fourth generation: 900 GB/s, both directions together
CLUSTERS = {
    "400 Gb/s a card": Cluster(_NVLINK, Link(8 * 50e9, 5e-6)),
    "100 Gb/s a node": Cluster(_NVLINK, Link(12.5e9, 20e-6)),
}
"""InfiniBand NDR with an adapter for each card; and what is rented as Ethernet."""


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """How long a ring of R ranks sums B bytes: 2(R − 1)·(B/R/bandwidth + latency).

    Each rank hands a part of B/R bytes on R − 1 times until each part is summed on one rank, and
    R − 1 times more until all have all.

    Source: Patarasuk and Yuan, "Bandwidth Optimal All-reduce Algorithms for Clusters of
    Workstations", JPDC 2009.
    """
    return 2 * (ranks - 1) * (size / ranks / link.bandwidth + link.latency)


def hierarchical_seconds(size: float, ranks: int, cluster: Cluster) -> float:
    """How long R ranks sum B bytes in three phases.

    A ring within each node leaves each of its N cards with the sum of a part of B/N bytes; N rings
    between nodes, at once over the link that they share, sum those; a ring within hands them on.
    """
    cards = min(cluster.node, ranks)
    nodes = math.ceil(ranks / cards)
    shared = Link(cluster.between.bandwidth / cards, cluster.between.latency)
    inside = ring_seconds(size, cards, cluster.within)
    return inside + ring_seconds(size / cards, nodes, shared)


@dataclass(frozen=True)
class Sharing:
    """One training on one kind of machine."""

    step: CountedStep
    cluster: Cluster

    def meeting(self, ranks: int) -> float:
        """Seconds of a meeting, none of which goes on beside the computation."""
        sizes = self.step.messages if ranks > 1 else ()
        return sum(hierarchical_seconds(size, ranks, self.cluster) for size in sizes)

    def strong(self, ranks: int) -> float:
        """T(1) ÷ (R·T(R)) of one batch; the largest part counts where it does not divide."""
        whole, one = self.step.batch, self.step.operations / _RATE
        return whole * one / ranks / (math.ceil(whole / ranks) * one + self.meeting(ranks))

    def weak(self, ranks: int) -> float:
        """T(1) ÷ T(R) with what one card has of the batch at the most cards, on each."""
        alone = max(1, self.step.batch // CARDS[-1]) * self.step.operations / _RATE
        return alone / (alone + self.meeting(ranks))

    def ends(self) -> str:
        """The most ranks, a power of two, at which the batch still keeps half of each busy."""
        ranks = 1
        while ranks < _MOST and 2 * ranks <= self.step.batch and self.strong(2 * ranks) >= 0.5:
            ranks *= 2
        return f"{ranks:,}"


def scaling_table(steps: Sequence[CountedStep]) -> str:
    """Markdown: what is counted, and the efficiencies of both machines at 8, 64 and 512 cards."""
    columns = ["", "batch", "operations each", "bytes that meet"]
    for name in CLUSTERS:
        columns += [f"{name}: strong", "weak", "half at", f"meeting of {CARDS[-1]}"]
    rows = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for step in steps:
        sent = sum(step.messages)
        cells = [step.title, f"{step.batch:,}", f"{step.operations / 1e9:,.3g} G"]
        cells.append(f"{sent / 1e6:,.3g} MB" if sent else "0")
        for cluster in CLUSTERS.values():
            one = Sharing(step, cluster)
            cells += [_shares(map(one.strong, CARDS)), _shares(map(one.weak, CARDS)), one.ends()]
            cells.append(f"{1e3 * one.meeting(CARDS[-1]):.2f} ms" if sent else "none")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _shares(values: Iterable[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)
