"""Predictive statistics against closed forms, slow loops and scikit-learn."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import Tensor
from torch.func import vmap

from metalearn.core.bayes import predictive as p
from metalearn.errors import SettingError

M, B, C = 5, 12, 4
STATISTICS = [
    p.mean_log_probabilities,
    p.running_mean_log_probabilities,
    p.predictive_entropy,
    p.expected_entropy,
    p.mutual_information,
    p.disagreement,
    p.running_disagreement,
    p.variation_ratio,
]


def drawn(*shape: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


def slow(logits: Tensor) -> dict[str, Tensor]:
    """Sample by sample, from probabilities."""
    rows: dict[str, list[float]] = {name: [] for name in ("total", "aleatoric", "pairs", "ratio")}
    for i in range(logits.shape[1]):
        members = [row.softmax(0).tolist() for row in logits[:, i]]
        mean = [sum(column) / len(members) for column in zip(*members)]
        rows["total"].append(-sum(q * math.log(q) for q in mean))
        inner = [-sum(q * math.log(q) for q in row) for row in members]
        rows["aleatoric"].append(sum(inner) / len(inner))
        votes = [row.index(max(row)) for row in members]
        pairs = list(itertools.combinations(votes, 2))
        rows["pairs"].append(sum(a != b for a, b in pairs) / max(1, len(pairs)))
        most = max(set(votes), key=votes.count)
        rows["ratio"].append(sum(vote != most for vote in votes) / len(votes))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def test_against_a_slow_loop() -> None:
    logits, expected = drawn(M, B, C), slow(drawn(M, B, C))
    mean = logits.softmax(-1).mean(0).log()
    torch.testing.assert_close(p.mean_log_probabilities(logits), mean)
    torch.testing.assert_close(p.predictive_entropy(logits), expected["total"])
    torch.testing.assert_close(p.expected_entropy(logits), expected["aleatoric"])
    split = expected["total"] - expected["aleatoric"]
    torch.testing.assert_close(p.mutual_information(logits), split)
    torch.testing.assert_close(p.disagreement(logits), expected["pairs"])
    torch.testing.assert_close(p.variation_ratio(logits), expected["ratio"])
    assert expected["pairs"].unique().numel() > 2  # the case is not a trivial one


def test_running_statistics_are_those_of_the_first_members() -> None:
    logits = drawn(M, B, C)
    for m in range(1, M + 1):
        first = p.mean_log_probabilities(logits[:m])
        torch.testing.assert_close(p.running_mean_log_probabilities(logits)[m - 1], first)
        pairs = slow(logits[:m])["pairs"]
        torch.testing.assert_close(p.running_disagreement(logits)[m - 1], pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_predictions_have_entropy_log_c(dtype: torch.dtype) -> None:
    total, aleatoric, epistemic = p.uncertainty(torch.full((3, 2, 7), 4.0, dtype=dtype))
    assert total.tolist() == pytest.approx([math.log(7)] * 2)
    assert aleatoric.tolist() == pytest.approx([math.log(7)] * 2)
    assert epistemic.tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("large", [50.0, 1e4, 1e30])
def test_two_members_certain_of_different_classes_differ_by_log_2(large: float) -> None:
    logits = torch.zeros(2, 1, 5)
    logits[0, 0, 1] = logits[1, 0, 3] = large
    total, aleatoric, epistemic = p.uncertainty(logits)
    assert float(total) == pytest.approx(math.log(2))
    assert float(aleatoric) == pytest.approx(0, abs=1e-12)
    assert float(epistemic) == pytest.approx(math.log(2))
    assert float(p.disagreement(logits)) == 1
    assert float(p.variation_ratio(logits)) == 0.5


def test_identical_members_share_no_information_and_agree() -> None:
    logits = drawn(1, 200, C, dtype=torch.float32).expand(8, -1, -1)
    _, _, epistemic = p.uncertainty(logits)
    assert float(epistemic.min()) >= 0  # rounding would make some of them negative
    assert float(epistemic.max()) < 1e-6
    assert float(p.disagreement(logits).max()) == float(p.variation_ratio(logits).max()) == 0


def test_the_parts_add_up_and_stay_in_their_range() -> None:
    total, aleatoric, epistemic = p.uncertainty(drawn(3, 500, 10, scale=6, dtype=torch.float32))
    torch.testing.assert_close(total, aleatoric + epistemic, atol=1e-6, rtol=0)
    assert float(epistemic.min()) >= 0
    assert float(epistemic.max()) <= math.log(3) + 1e-6
    assert float(total.max()) <= math.log(10) + 1e-6


@pytest.mark.parametrize("statistic", STATISTICS)
def test_extreme_logits_stay_finite_in_value_and_derivative(statistic: object) -> None:
    logits = 1e4 * drawn(M, B, C, dtype=torch.float32).sign()
    logits.requires_grad_()
    value: Tensor = statistic(logits)  # type: ignore[operator]
    assert bool(value.isfinite().all())
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert bool(gradient.isfinite().all())


def test_impossible_classes_count_nothing() -> None:
    logits = drawn(M, B, C)
    masked = torch.cat([logits, torch.full((M, B, 1), -math.inf)], -1)
    for one, other in zip(p.uncertainty(masked), p.uncertainty(logits)):
        torch.testing.assert_close(one, other)
    log_p = p.mean_log_probabilities(masked).requires_grad_()
    (gradient,) = torch.autograd.grad(p.entropy(log_p).sum(), log_p)
    assert not bool(gradient.isnan().any())


@pytest.mark.parametrize("statistic", STATISTICS)
def test_inside_an_outer_vmap_and_with_more_batch_axes(statistic: object) -> None:
    logits = drawn(3, M, B, C)
    looped = torch.stack([statistic(one) for one in logits])  # type: ignore[operator]
    mapped = vmap(statistic)(logits)  # type: ignore[arg-type]
    torch.testing.assert_close(mapped, looped)
    tasks = statistic(logits.movedim(0, 1))  # type: ignore[operator]  # [M, T, N, C]
    running = tasks.shape[0] == M and tasks.ndim > 2 and tasks.shape[1] == 3
    torch.testing.assert_close(tasks.movedim(1, 0) if running else tasks, looped)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_one_member_is_the_single_model(statistic: object) -> None:
    logits = drawn(1, B, C)
    log_p = logits[0].log_softmax(-1)
    expected = {
        p.mean_log_probabilities: log_p,
        p.running_mean_log_probabilities: log_p[None],
        p.predictive_entropy: p.entropy(log_p),
        p.expected_entropy: p.entropy(log_p),
        p.running_disagreement: torch.zeros(1, B, dtype=torch.float64),
    }.get(statistic, torch.zeros(B, dtype=torch.float64))  # type: ignore[call-overload]
    torch.testing.assert_close(statistic(logits), expected)  # type: ignore[operator]


def test_half_precision_is_widened() -> None:
    logits = drawn(300, 2, C).bfloat16()
    assert p.mean_log_probabilities(logits).dtype == torch.float32
    torch.testing.assert_close(p.disagreement(logits), p.disagreement(logits.float()))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scores_against_scikit_learn(classes: int) -> None:
    logits = drawn(M, 80, classes)
    targets = torch.arange(80) % classes
    log_p = p.mean_log_probabilities(logits)
    probabilities, labels = log_p.exp().numpy(), list(range(classes))
    nll = float(p.negative_log_likelihoods(log_p, targets).mean())
    assert nll == pytest.approx(log_loss(targets, probabilities, labels=labels))
    brier = float(p.brier_scores(log_p, targets).mean())
    if classes == 2:  # scikit-learn's binary score counts one class of the two
        binary = brier_score_loss(targets, probabilities[:, 1], scale_by_half=True)
        assert brier == pytest.approx(2 * binary)
    else:
        multi = brier_score_loss(targets, probabilities, labels=labels, scale_by_half=False)
        assert brier == pytest.approx(multi)
    accuracy = float(p.is_correct(log_p, targets).double().mean())
    assert accuracy == accuracy_score(targets, probabilities.argmax(1))


def test_scores_of_all_members_at_once_and_inside_vmap() -> None:
    log_p, targets = drawn(M, B, C).log_softmax(-1), torch.arange(B) % C
    for score in (p.negative_log_likelihoods, p.brier_scores, p.is_correct):
        looped = torch.stack([score(row, targets) for row in log_p])
        assert torch.equal(score(log_p, targets), looped)
        assert torch.equal(vmap(score, in_dims=(0, None))(log_p, targets), looped)


def test_certain_and_right_or_wrong() -> None:
    log_p = torch.tensor([[1e4, 0.0], [0.0, 1e4]]).log_softmax(-1)
    targets = torch.tensor([0, 0])
    assert p.negative_log_likelihoods(log_p, targets).tolist() == [0, 1e4]
    assert p.brier_scores(log_p, targets).tolist() == [0, 2]
    assert p.is_correct(log_p, targets).tolist() == [True, False]


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0), (4,)])
def test_no_member_or_no_class_is_refused(statistic: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        SettingError, match=r"shape of logits=\[.*at least one member and one class"
    ):
        statistic(torch.zeros(shape))  # type: ignore[operator]
