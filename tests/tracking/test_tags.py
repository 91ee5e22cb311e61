"""Every record of a run has a name of its own in TensorBoard, whatever metrics are called."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from metalearn.tracking import RunTracker
from metalearn.tracking.dashboard import shown_as
from metalearn.tracking.tags import Tags
from metalearn.trainers.loop.layers import by_layer

ALIKE = [
    ["validation/nll", "validation/loss", "validation/loss_after"],
    ["validation/my_score", "validation/my score"],
    ["train/member_loss", "train/loss member_"],
    ["a_b/c", "a b/c", "a_b/c "],
    ["test/accuracy", "test/accuracy_after"],
    ["validation/loss", "validation/nll", "1 overview/loss (validation) [validation/nll]"],
]


@pytest.mark.parametrize("names", [list(p) for a in ALIKE for p in itertools.permutations(a)])
def test_each_number_has_a_name_of_its_own(names: list[str]) -> None:
    tags = Tags()
    found = [tags.number(name) for name in names]
    assert len(set(found)) == len(names) and found[0] == shown_as(names[0])
    assert [tags.number(name) for name in reversed(names)] == found[::-1]


def test_numbers_that_would_share_a_curve_have_two(tmp_path: Path) -> None:
    for step, names in enumerate((["nll", "loss"], ["loss", "nll"])):
        tracker = RunTracker(tmp_path, resume_step=step)
        values = {f"validation/{name}": float(len(name)) for name in names}
        tracker.scalars(step, values)
        tracker.figure(step, "validation/task", Figure())
        tracker.scalars(step, {"validation/one task": 2.0})
        tracker.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    curves = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "1 overview/loss (validation)": [3.0, 3.0],
        "1 overview/loss (validation) [validation/loss]": [4.0, 4.0],
        "2 validation/one task [validation/one task]": [2.0, 2.0],
    }
    assert events.Tags()["images"] == ["2 validation/one task"]


def test_pictures_and_distributions_of_one_name_are_told_apart() -> None:
    tags = Tags()
    shown = [
        tags.number("weights/own layer"),
        tags.distribution("weights/own_layer"),
        tags.figure("weights/own_layer"),
        tags.figure("weights/own layer"),
        tags.band("7 weights/own layer"),
    ]
    assert len(set(shown)) == len(shown)


class Watched(Mapping[str, Tensor]):
    """A mapping that says how many of its tensors were there at once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.alive, self.most = tensors, weakref.WeakSet(), 0  # type: ignore[var-annotated]

    def __getitem__(self, name: str) -> Tensor:
        found = self.tensors[name]
        self.alive.add(found)
        self.most = max(self.most, len(self.alive))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_the_weights_of_layers_are_copied_one_layer_at_a_time(tmp_path: Path) -> None:
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    watched = Watched(by_layer(net, dict(net.named_parameters())))
    tracker = RunTracker(tmp_path)
    tracker.histograms(0, "weights", watched)
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert len(events.Tags()["histograms"]) == 6
    assert watched.most <= 2  # the next is made while the name of the one before is still bound
    first = watched.tensors["0 (Linear)"]
    assert torch.equal(first, torch.cat([p.detach().flatten() for p in net[0].parameters()]))
