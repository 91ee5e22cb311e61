"""What a gradient through a run will cost: counted against what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metalearn.core import HyperProgress, adam, plan_hyper_gradient
from metalearn.core.meta.kept_states import forward_steps
from tests.support.weighted_run import HYPER, OUTER, K, batch, each, found_by, inner, start


def plan(**more: Any) -> Any:
    given: dict[str, Any] = {"optimizer": adam(0.1), "frozen": "unmoved", "steps": K} | more
    return plan_hyper_gradient(inner, each, start(), HYPER, batch, OUTER, **given)


@pytest.mark.parametrize(
    "more", [{}, {"memory": 2000}, {"method": "truncated", "truncation": 3}, {"memory": "1GB"}]
)
def test_steps_are_counted_and_states_measured(more: dict[str, Any]) -> None:
    steps: list[int] = []

    def counted(k: int) -> Any:
        steps.append(k)
        return batch(k)

    found = plan(**more)
    moving = [v for n, v in start().items() if n != "unmoved"]
    assert found.state_bytes == 8 * 3 * sum(v.numel() for v in moving)  # with two moments
    found_by(
        more.get("method", "mixed"),
        each,
        optimizer=adam(0.1),
        batches=counted,
        **{k: v for k, v in more.items() if k != "method"},
    )
    back = more.get("truncation", K)
    assert found.back_steps == back
    assert len(steps) - 2 == found.forward_steps + back  # two to see that batches are addressed
    assert found.step_bytes > 0 and found.seconds > found.training_seconds > 0
    assert f"{found.states} of {K} states kept" in str(found)


@pytest.mark.parametrize("steps", [1, 5, 40])
@pytest.mark.parametrize("states", [1, 2, 6, 40])
def test_forward_steps_of_a_part_of_the_way_back(steps: int, states: int) -> None:
    counts = [forward_steps(steps, states, back) for back in range(steps + 1)]
    assert counts[0] == steps and counts == sorted(counts)
    assert counts[-1] == forward_steps(steps, states)


def test_progress_and_plan_are_of_one_walk() -> None:
    seen: list[HyperProgress] = []
    found_by("mixed", each, optimizer=adam(0.1), progress=seen.append)
    assert len([p for p in seen if p.phase == "back"]) == plan().back_steps
    assert torch.is_tensor(seen[-1].snapshot()["identity"]["start"][0])
