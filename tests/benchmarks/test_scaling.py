"""The calculation of scaling: its formula against a ring in which every message is followed, its
counts against parameters and layers, and the page against what comes out.

Axes: R ranks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from metalearn.benchmarks.counted_steps import (
    NETWORKS,
    CountedStep,
    counted_steps,
    member_operations,
    messages,
    sample_operations,
    task_operations,
)
from metalearn.benchmarks.scaling import (
    CARDS,
    CLUSTERS,
    Cluster,
    Link,
    Sharing,
    hierarchical_seconds,
    ring_seconds,
    scaling_table,
)

PAGE = Path("docs/many-processes.md")
LINK = Link(2e9, 7e-6)


def followed(ranks: int, size: float, link: Link, begin: list[float]) -> tuple[float, list[float]]:
    """When the last of R ranks has all sums, and what each then has of the first part.

    Every message of the ring is sent once its sender has what it is to hold and has sent the one
    before; nothing is known of rounds, nor of how many there are.
    """
    parts = [[float(10**rank + part) for part in range(ranks)] for rank in range(ranks)]
    has = [{rank: begin[rank]} for rank in range(ranks)]  # when a rank holds a part, summed so far
    free, last = list(begin), max(begin)
    for sums in (True, False):
        for step in range(ranks - 1):
            arrivals = []
            for rank in range(ranks):
                part = (rank - step + (0 if sums else 1)) % ranks
                start = max(free[rank], has[rank].get(part, begin[rank]))
                end = start + link.latency + size / ranks / link.bandwidth
                free[rank] = end
                arrivals.append(((rank + 1) % ranks, part, parts[rank][part], end))
            for rank, part, value, end in arrivals:
                parts[rank][part] = parts[rank][part] + value if sums else value
                has[rank][part] = max(end, begin[rank])
                last = max(last, end)
    whole = [sum(10**rank + part for rank in range(ranks)) for part in range(ranks)]
    assert all(own == whole for own in parts)  # it is a sum over ranks, on each of them
    return last, free


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8, 15])
@pytest.mark.parametrize("size", [16, 4.5e5, 8e7])
def test_a_ring_takes_as_long_as_its_messages(ranks: int, size: float) -> None:
    last, _ = followed(ranks, size, LINK, [0.0] * ranks)
    assert ring_seconds(size, ranks, LINK) == pytest.approx(last, rel=1e-12)


def test_a_late_rank_is_waited_for_and_in_no_formula() -> None:
    late, _ = followed(4, 1e6, LINK, [0.0, 0.0, 0.5, 0.0])
    assert late >= 0.5 + ring_seconds(1e6, 4, LINK) / 2


@pytest.mark.parametrize("nodes", [1, 2, 3, 8])
def test_nodes_sum_within_between_and_within(nodes: int) -> None:
    """Each of four cards of a node has a quarter of the bytes to sum with other nodes."""
    cluster = Cluster(LINK, Link(1e9, 3e-5), node=4)
    half = followed(4, 1e6, LINK, [0.0] * 4)[0] / 2  # sums of parts; then the way back
    shared = Link(1e9 / 4, 3e-5)
    last = half + followed(nodes, 1e6 / 4, shared, [0.0] * nodes)[0] + half
    assert hierarchical_seconds(1e6, 4 * nodes, cluster) == pytest.approx(last, rel=1e-12)


def test_one_rank_meets_nobody_and_a_slower_link_never_helps() -> None:
    step = CountedStep("", 512, 1e9, (10**6, 16))
    fast, slow = (Sharing(step, cluster) for cluster in CLUSTERS.values())
    assert fast.strong(1) == fast.weak(1) == slow.strong(1) == 1
    for ranks in CARDS:
        assert slow.strong(ranks) <= fast.strong(ranks) < 1
        assert slow.weak(ranks) <= fast.weak(ranks) < 1


def test_a_batch_that_does_not_divide_waits_for_its_largest_part() -> None:
    one = Sharing(CountedStep("", 9, 1e9, ()), CLUSTERS["400 Gb/s a card"])
    assert one.strong(8) == pytest.approx(9 / 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_meet_whole_and_once(name: str) -> None:
    """With a loss in float32, and digits of two counts in float64 in a message of their own."""
    module = NETWORKS[name].make()
    wanted = 4 * sum(value.numel() for value in module.parameters()) + 4
    *gradients, counts = messages(NETWORKS[name])
    assert sum(gradients) == wanted and counts == 32
    assert max(gradients) <= 2**25


def test_operations_are_those_of_the_layers() -> None:
    """Of conv4 by hand: a pass forward and, but for the pictures' own gradient, two back."""
    module = NETWORKS["conv4"].make()
    sizes, first, side = [], 0, 84
    for block in module.blocks:
        weight, side = block[0].weight, -(-side // 2)
        sizes.append(2 * weight.numel() * side**2)
        first = first or sizes[0]
    sizes.append(2 * module.head.weight.numel())
    assert member_operations(NETWORKS["conv4"]) == 64 * (3 * sum(sizes) - first)
    assert sample_operations(NETWORKS["conv4"]) > 3 * sum(sizes) - first
    assert task_operations(NETWORKS["conv4"]) > 75 * (3 * sum(sizes) - first)


def test_the_page_has_what_is_calculated_of_conv4() -> None:
    """All rows hold the bytes of today's messages; those of conv4 its operations too."""
    page = PAGE.read_text()
    one = NETWORKS["conv4"]
    steps = [
        CountedStep(f"{one.title}: tasks", 512, task_operations(one), messages(one)),
        CountedStep(f"{one.title}: samples, clipped", 32768, sample_operations(one), messages(one)),
        CountedStep(f"{one.title}: members", 512, member_operations(one), ()),
    ]
    for row in scaling_table(steps).splitlines():
        assert f"\n{row}\n" in page
    for network in NETWORKS.values():
        sent = f"{sum(messages(network)) / 1e6:,.3g} MB"
        rows = [row for row in page.splitlines() if row.startswith(f"| {network.title}: ")]
        assert [sent in row for row in rows] == [True, True, False]


@pytest.mark.campaign
def test_the_page_has_all_that_is_calculated() -> None:
    assert f"\n{scaling_table(counted_steps())}\n" in PAGE.read_text()
