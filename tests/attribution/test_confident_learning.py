"""Confident learning against the definitions of its paper, written with loops over examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.attribution import (
    confident_joint,
    label_issues,
    out_of_sample_probabilities,
    retrain_subsets,
)
from metalearn.attribution.out_of_sample import folds_by_class
from metalearn.data import mislabelled
from metalearn.errors import SettingError
from metalearn.models import MLP
from tests.support.small_data import blobs, waves

RULES = ("noise_rate", "class", "both", "confident", "argmax")


def drawn(seed: int, examples: int = 60, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Labels of which some contradict sharp probabilities."""
    draws = torch.Generator().manual_seed(seed)
    true = torch.randint(classes, (examples,), generator=draws)
    logits = torch.randn(examples, classes, generator=draws, dtype=torch.float64)
    logits[torch.arange(examples), true] += 2
    wrong = torch.rand(examples, generator=draws) < 0.3
    other = torch.randint(classes, (examples,), generator=draws)
    return torch.where(wrong, other, true), logits.softmax(-1)


def by_hand(labels: list[int], p: list[list[float]]) -> tuple[Any, Any, Any]:
    """Thresholds, counts and joint."""
    n, classes = len(labels), len(p[0])
    groups = [[x for x in range(n) if labels[x] == j] for j in range(classes)]
    thresholds = [
        sum(p[x][j] for x in group) / len(group) if group else float("inf")
        for j, group in enumerate(groups)
    ]
    counts = [[0] * classes for _ in range(classes)]
    for x in range(n):
        sure = [j for j in range(classes) if p[x][j] >= thresholds[j]]
        if sure:
            counts[labels[x]][max(sure, key=lambda j: p[x][j])] += 1
    joint = []
    for i in range(classes):
        total = sum(counts[i])
        row = [c / total if total else float(i == j) for j, c in enumerate(counts[i])]
        joint.append([share * len(groups[i]) / n for share in row])
    return thresholds, counts, joint


def issues_by_hand(labels: list[int], p: list[list[float]], rule: str) -> set[int]:
    n, classes = len(labels), len(p[0])
    thresholds, _, joint = by_hand(labels, p)
    if rule == "argmax":
        return {x for x in range(n) if max(range(classes), key=lambda j: p[x][j]) != labels[x]}
    if rule == "confident":
        found = set()
        for x in range(n):
            sure = [j for j in range(classes) if p[x][j] >= thresholds[j]]
            if sure and max(sure, key=lambda j: p[x][j]) != labels[x]:
                found.add(x)
        return found
    rate, by_class = set(), set()
    for i in range(classes):
        own = [x for x in range(n) if labels[x] == i]
        off = 0.0
        for j in range(classes):
            if j != i:
                off += n * joint[i][j]
                rate |= set(sorted(own, key=lambda x: p[x][i] - p[x][j])[: round(n * joint[i][j])])
        by_class |= set(sorted(own, key=lambda x: p[x][i])[: round(off)])
    return {"noise_rate": rate, "class": by_class, "both": rate & by_class}[rule]


@pytest.mark.parametrize("seed", range(4))
def test_joint_is_that_of_the_definition(seed: int) -> None:
    labels, p = drawn(seed)
    found = confident_joint(labels, p)
    thresholds, counts, joint = by_hand(labels.tolist(), p.tolist())
    torch.testing.assert_close(found.thresholds, torch.tensor(thresholds, dtype=torch.float64))
    assert found.counts.tolist() == counts
    torch.testing.assert_close(found.joint, torch.tensor(joint, dtype=torch.float64))
    torch.testing.assert_close(found.joint.sum(), torch.tensor(1.0, dtype=torch.float64))
    shares = torch.bincount(labels, minlength=4).double() / len(labels)
    torch.testing.assert_close(found.joint.sum(1), shares)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_issues_are_those_of_the_definition(seed: int, rule: Any) -> None:
    labels, p = drawn(seed)
    found = label_issues(labels, p, rule=rule)
    expected = issues_by_hand(labels.tolist(), p.tolist(), rule)
    assert found.dtype == torch.bool and set(found.nonzero().flatten().tolist()) == expected
    assert 0 < len(expected) < len(labels)


def test_labels_that_networks_agree_with_are_right() -> None:
    labels = torch.arange(12) % 3
    p = torch.full((12, 3), 0.1, dtype=torch.float64)
    p[torch.arange(12), labels] = 0.8
    assert torch.equal(confident_joint(labels, p).counts, torch.diag(torch.tensor([4, 4, 4])))
    assert not any(label_issues(labels, p, rule=rule).any() for rule in RULES)  # type: ignore[arg-type]


def test_classes_without_examples_and_labels_of_which_none_is_sure() -> None:
    labels = torch.tensor([0, 0, 0, 1])  # class 2 has no examples
    p = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.1, 0.7]])
    found = confident_joint(labels, p)
    assert found.thresholds[2] == float("inf") and not found.counts[:, 2].any()
    _, counts, joint = by_hand(labels.tolist(), p.double().tolist())
    assert found.counts.tolist() == counts
    torch.testing.assert_close(found.joint, torch.tensor(joint, dtype=torch.float64))


def test_planted_errors_are_found_out_of_sample() -> None:
    data = mislabelled(blobs(), fraction=0.2, seed=0)
    labels = data.part("train")[1]
    how: Any = {"steps": 60, "batch_size": 16, "lr": 0.02, "progress": False}
    p = out_of_sample_probabilities(MLP((2,), 3, hidden=(8,), seed=0), data, folds=4, **how)
    found = label_issues(labels, p)
    right = (found == data.wrong).float().mean()
    assert right > 0.9 and (found & data.wrong).sum() >= 6  # of 10


def test_each_fold_is_predicted_by_the_network_that_lacks_it() -> None:
    data, network = blobs(), MLP((2,), 3, hidden=(4,), seed=0)
    how: Any = {"steps": 5, "batch_size": 16, "lr": 0.1, "progress": False}
    found = out_of_sample_probabilities(network, data, folds=3, seed=2, **how)
    x, y = data.part("train")
    folds = folds_by_class(y, 3, seed=2)
    for fold in range(3):
        own = folds == fold
        alone = retrain_subsets(
            network, data, (~own).float()[None], (x[own], y[own]), seeds=2, **how
        ).outputs[0]
        torch.testing.assert_close(found[own], alone.softmax(-1))
    torch.testing.assert_close(found.sum(1), torch.ones(48))


def test_folds_are_even_in_every_class() -> None:
    labels = torch.tensor([0] * 11 + [1] * 7 + [2])
    for folds in (2, 3, 5):
        found = folds_by_class(labels, folds, seed=0)
        sizes = torch.bincount(found, minlength=folds)
        assert int(sizes.max() - sizes.min()) <= 1
        for label in range(3):
            of_class = torch.bincount(found[labels == label], minlength=folds)
            assert int(of_class.max() - of_class.min()) <= 1
    assert not torch.equal(folds_by_class(labels, 2, seed=0), folds_by_class(labels, 2, seed=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.tensor([0, 3])}, r"labels=3: a class in 0..2 is needed"),
        ({"labels": torch.tensor([0.0, 1.0])}, r"labels='torch.float32': class indices"),
        ({"labels": torch.tensor([0])}, r"shape of labels=\[1\]: \[2\] is needed"),
        ({"labels": torch.tensor([[0], [1]])}, r"shape of labels=\[2, 1\]: \[2\] is needed"),
        ({"probabilities": torch.ones(2)}, r"probabilities='torch.float32 \[2\]'"),
        ({"probabilities": torch.ones(2, 1)}, r"probabilities='torch.float32 \[2, 1\]'"),
        ({"probabilities": torch.ones(2, 3)}, "probabilities=3.0: numbers of at least 0"),
        ({"probabilities": torch.tensor([[1.5, -0.5, 0.0]] * 2)}, "probabilities=-0.5: numbers"),
        ({"probabilities": torch.full((2, 3), float("nan"))}, "probabilities=nan: numbers"),
        ({"labels": torch.zeros(0).long(), "probabilities": torch.ones(0, 3)}, "shape of labels"),
    ],
)
def test_what_cannot_work_is_one_sentence(given: dict[str, Any], message: str) -> None:
    good = {"labels": torch.tensor([0, 1]), "probabilities": torch.full((2, 3), 1 / 3)}
    for function in (confident_joint, label_issues):
        with pytest.raises(SettingError, match=f"^{message}"):
            function(**{**good, **given})


def test_rules_and_folds_that_there_are_not() -> None:
    labels, p = drawn(0)
    with pytest.raises(SettingError, match="rule='rate': one of noise_rate, class, both,"):
        label_issues(labels, p, rule="rate")  # type: ignore[arg-type]
    network = MLP((2,), 3, hidden=(4,))
    for folds, message in ((1, "folds=1: a whole number of at least 2"), (49, "folds=49: at most")):
        with pytest.raises(SettingError, match=message):
            out_of_sample_probabilities(network, blobs(), folds=folds)
    with pytest.raises(SettingError, match="data="):
        out_of_sample_probabilities(network, waves())  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="member_weights=.*: there is no such setting"):
        out_of_sample_probabilities(network, blobs(), member_weights=torch.ones(5, 48))
