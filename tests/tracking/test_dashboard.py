"""Under which names TensorBoard shows what a run records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metalearn.models import MLP, Ensemble
from metalearn.tracking import table_figure
from metalearn.tracking.dashboard import shown_as, shown_figure
from metalearn.trainers.loop.layers import by_layer

SAVED = sorted((Path(__file__).parents[1] / "saved_runs").glob("v*/*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ("validation/accuracy_after", "1 overview/accuracy (validation)"),
        ("validation/inductive_loss_after", "1 overview/loss (validation, each query alone)"),
        ("validation/nll", "1 overview/loss (validation)"),
        ("train/loss", "1 overview/loss (training)"),
        ("train/learning_rate", "1 overview/learning rate"),
        ("speed/tasks_per_s", "1 overview/speed (tasks a second)"),
        ("best/member_loss", "8 test and findings/loss (best validation)"),
        ("test/accuracy", "8 test and findings/accuracy (test)"),
        ("test/brier", None),
        ("hyper/check_error", None),
        ("validation/own", "2 validation/own"),
        ("validation_by_step/accuracy_1", "2 validation/accuracy after 1 inner step"),
        ("train/member_loss", "5 members/loss (training, median)"),
        ("gradient_snr/sample", "6 gradients/signal to noise of samples"),
        ("gradient_snr/sample_by_layer/head", None),
        ("mine/sample_median", "6 mine/sample median"),
        ("learnt_lr_by_step/step_0", "4 learnt/learnt lr by step: step 0"),
        ("speed/memory_gb", "9 time and memory/memory (GB)"),
        ("plain", "plain"),
    ],
)
def test_records_have_their_section_and_words(record: str, shown: str | None) -> None:
    assert shown_as(record) == shown


def test_no_two_records_of_a_run_have_one_name() -> None:
    """They would be one curve that jumps."""
    assert SAVED
    for path in SAVED:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        names = {name for line in lines for name in line if "/" in name}
        names = {n for n in names if not n.endswith(("_low", "_high")) and "member_0" not in n}
        shown = [tag for name in sorted(names) if (tag := shown_as(name)) is not None]
        assert len(shown) == len(set(shown)), path


def test_figures_have_theirs() -> None:
    assert shown_figure("validation/task") == "2 validation/one task"
    found = shown_figure("diagnosis_test/members/cosines")
    assert found == "8 test and findings/diagnosis (test): members: cosines"


def test_layers_are_named_by_place_and_kind_and_hold_all_entries() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    found = by_layer(net, dict(net.named_parameters()))
    assert {name: len(values) for name, values in found.items()} == {
        "0 (Linear)": 9,
        "2 (Linear)": 3,
    }
    weight, bias = net[0].parameters()
    assert torch.equal(found["0 (Linear)"], torch.cat([weight.detach().flatten(), bias.detach()]))


def test_members_share_their_layers_names() -> None:
    nets = Ensemble.from_factory(lambda seed: MLP((2,), 1, hidden=(4,), seed=seed), seeds=range(3))
    alone = MLP((2,), 1, hidden=(4,))
    found = by_layer(nets, dict(nets.named_parameters()))
    one = by_layer(alone, dict(alone.named_parameters()))
    assert {name: len(v) for name, v in found.items()} == {n: 3 * len(v) for n, v in one.items()}


def test_many_layers_are_shown_by_the_beginnings_of_their_names() -> None:
    blocks = nn.ModuleDict(
        {f"block{b}": nn.Sequential(*[nn.Linear(1, 1) for _ in range(6)]) for b in range(3)}
    )
    found = by_layer(blocks, dict(blocks.named_parameters()))
    assert {name: len(values) for name, values in found.items()} == {
        f"block{b}": 12 for b in range(3)
    }


def test_a_table_has_all_its_texts() -> None:
    figure = table_figure(("of", "what", "median"), [("a", "$x", "1"), ("b", "y", "2")], title="t")
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["t", "of", "what", "median", "a", "$x", "1", "b", "y", "2"]
    with pytest.raises(ValueError, match="a text for each head"):
        table_figure(("of",), [("a", "b")], title="t")
