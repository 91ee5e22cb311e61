"""Tasks of several steps that are drawn at once: the same tasks, drawn less often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from metalearn.core.tree import leaves
from metalearn.errors import SettingError
from metalearn.models import MLP
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MetaTrainer
from metalearn.trainers.meta.drawn_ahead import DrawnAhead
from tests.support.builders import assert_same, batch_of


class Counted(SinusoidTasks):
    """Sine waves that keep which tasks were drawn, so many at once."""

    def __init__(self, ahead: int) -> None:
        super().__init__(shot=3, query=2)
        self.ahead, self.drawn = ahead, list[range]()

    @property
    def tasks_ahead(self) -> int:
        return self.ahead

    def sample(self, split: Any, indices: Sequence[int], **how: Any) -> Any:
        if split == "train":
            self.drawn.append(range(indices[0], indices[-1] + 1))
        return super().sample(split, indices, **how)


def ahead(source: Counted, end: int) -> Any:
    drawn = DrawnAhead(lambda indices: source.sample("train", indices), end)
    return lambda start, stop: drawn(source, range(start, stop))


def test_a_block_is_drawn_once_and_not_beyond_the_end() -> None:
    source = Counted(10)
    take = ahead(source, 20)
    for step in (0, 1, 2, 2, 3, 4):
        found = take(4 * step, 4 * step + 4)
        alone = SinusoidTasks(shot=3, query=2).sample("train", range(4 * step, 4 * step + 4))
        for one, other in zip(leaves(found), leaves(alone), strict=True):
            assert torch.equal(one, other) and one.is_contiguous()
    assert source.drawn == [range(0, 8), range(8, 16), range(16, 20)]
    take(20, 24)  # more steps than were planned are drawn one by one
    assert source.drawn[-1] == range(20, 24)


def test_steps_before_the_block_and_across_its_end_are_drawn_anew() -> None:
    source = Counted(12)
    take = ahead(source, 100)
    for start, drawn in ((24, range(24, 36)), (0, range(0, 12)), (9, range(9, 21))):
        take(start, start + 4)
        assert source.drawn[-1] == drawn


def test_what_is_given_out_is_nobody_elses() -> None:
    take = ahead(Counted(8), 100)
    first = take(0, 4)
    first.query[0].zero_()
    assert float(take(0, 4).query[0].abs().min()) > 0


@pytest.mark.parametrize("many", [1, 7])
def test_few_tasks_are_drawn_step_by_step(many: int) -> None:
    source = Counted(many)
    take = ahead(source, 100)
    for step in range(3):
        take(4 * step, 4 * step + 4)
    assert source.drawn == [range(0, 4), range(4, 8), range(8, 12)]


@pytest.mark.parametrize("bad", [0, -3, 2.0, "512", None])
def test_what_is_no_number_of_tasks_is_refused(bad: Any) -> None:
    with pytest.raises(SettingError, match="^Counted.tasks_ahead=.*: a whole number of at least 1"):
        ahead(Counted(bad), 100)(0, 4)


def test_another_source_is_drawn_from() -> None:
    one, other = Counted(8), Counted(8)
    drawn = DrawnAhead(lambda indices: one.sample("train", indices), 100)
    drawn(one, range(0, 4))
    drawn(other, range(4, 8))
    assert one.drawn == [range(0, 8), range(4, 12)]


def test_a_training_is_the_same_however_many_are_drawn_at_once() -> None:
    def trained(many: int) -> tuple[Any, Counted]:
        source = Counted(many)
        trainer = MetaTrainer(
            MLP((1,), 1, hidden=(6,), seed=0), source, meta_batch=3, steps=5, validation_tasks=2,
            eval_every=5, accumulate=2, progress=False,
        )  # fmt: skip
        trainer.fit()
        return trainer, source

    (alone, one), (together, several) = trained(1), trained(12)
    assert_same(dict(alone.module.state_dict()), dict(together.module.state_dict()))
    assert len(several.drawn) < len(one.drawn)
    assert max(drawn.stop for drawn in several.drawn) == 5 * 2 * 3
    assert_same(batch_of(alone, 3).tasks, batch_of(together, 3).tasks)
