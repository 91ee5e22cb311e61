"""What an ensemble predicts, and how its uncertainty splits: pure functions of logits.

Axes: M members first, C classes last, any batch axes between them: ``[M, B, C]`` for one batch,
``[M, T, N, C]`` for the queries of T tasks. There is one value for each sample; the mean over
samples is the score of a data set. Entropies are in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.core.targets import check_labels
from metalearn.errors import SettingError

__all__ = [
    "Uncertainty",
    "brier_scores",
    "disagreement",
    "entropy",
    "expected_entropy",
    "is_correct",
    "mean_log_probabilities",
    "mutual_information",
    "negative_log_likelihoods",
    "predictive_entropy",
    "running_disagreement",
    "running_mean_log_probabilities",
    "uncertainty",
    "variation_ratio",
]


class Uncertainty(NamedTuple):
    """``total = aleatoric + epistemic``, each ``[...]`` (entropies) or ``[..., D]`` (variances)."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Log of the mean of the members' probabilities, ``log((1/M) Σ_m softmax(z_m))``.

    By logsumexp over members of log_softmax, so that neither large logits nor probabilities that
    underflow lose it.

    Args:
        logits: ``[M, ..., C]``.

    Returns:
        ``[..., C]``; its exponentials sum to 1.

    Raises:
        SettingError: no member or no class.
    """
    return _log_probabilities(logits).logsumexp(0) - math.log(logits.shape[0])


def running_mean_log_probabilities(logits: Tensor) -> Tensor:
    """`mean_log_probabilities` of the first 1, 2, …, M members.

    Args:
        logits: ``[M, ..., C]``.

    Returns:
        ``[M, ..., C]``; entry m−1 belongs to the first m members.

    Raises:
        SettingError: no member or no class.
    """
    log_p = _log_probabilities(logits)
    sizes = _sizes(log_p)
    return log_p.logcumsumexp(0) - sizes.log()


def entropy(log_probabilities: Tensor) -> Tensor:
    """Shannon entropy ``−Σ_c p_c log p_c``, with ``0 log 0 = 0``, in nats.

    Args:
        log_probabilities: ``[..., C]``.

    Returns:
        ``[...]`` in 0..log C.
    """
    # A clamped logarithm keeps 0 · log 0 at 0, in the derivative too.
    finite = log_probabilities.clamp_min(torch.finfo(log_probabilities.dtype).min)
    return -(log_probabilities.exp() * finite).sum(-1)


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction (total uncertainty); ``[M, ..., C]`` → ``[...]``.

    Raises:
        SettingError: no member or no class.
    """
    return uncertainty(logits).total


def expected_entropy(logits: Tensor) -> Tensor:
    """Mean over members of their entropies (aleatoric); ``[M, ..., C]`` → ``[...]``.

    Raises:
        SettingError: no member or no class.
    """
    return uncertainty(logits).aleatoric


def mutual_information(logits: Tensor) -> Tensor:
    """Mutual information of prediction and member (BALD, epistemic); ``[M, ..., C]`` → ``[...]``.

    Raises:
        SettingError: no member or no class.
    """
    return uncertainty(logits).epistemic


def uncertainty(logits: Tensor) -> Uncertainty:
    """Predictive entropy split in its aleatoric and epistemic parts.

    ``H[(1/M) Σ_m p_m] = (1/M) Σ_m H[p_m] + MI`` (Depeweg et al., ICML 2018; BALD: Houlsby et al.,
    2011, arXiv 1112.5745). The mutual information is between 0 and log min(M, C); what rounding
    makes negative is set to 0, so that the identity holds to rounding alone.

    Args:
        logits: ``[M, ..., C]``.

    Returns:
        Predictive entropy, expected entropy and mutual information, each ``[...]``, in nats.

    Raises:
        SettingError: no member or no class.
    """
    log_p = _log_probabilities(logits)
    total = entropy(log_p.logsumexp(0) - math.log(log_p.shape[0]))
    aleatoric = entropy(log_p).mean(0)
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp_min(0))


def disagreement(logits: Tensor) -> Tensor:
    """Share of the M(M−1)/2 pairs of members whose most probable classes differ.

    Args:
        logits: ``[M, ..., C]``.

    Returns:
        ``[...]`` in 0..1; 0 for a single member.

    Raises:
        SettingError: no member or no class.
    """
    members = _members(logits)
    votes = _votes(logits).sum(0)
    return _pairwise(votes, torch.full_like(votes[..., 0], members))


def running_disagreement(logits: Tensor) -> Tensor:
    """`disagreement` of the first 1, 2, …, M members; ``[M, ..., C]`` → ``[M, ...]``.

    Raises:
        SettingError: no member or no class.
    """
    _members(logits)
    votes = _votes(logits).cumsum(0)
    return _pairwise(votes, _sizes(votes)[..., 0])


def variation_ratio(logits: Tensor) -> Tensor:
    """Share of members that vote against the class with the most votes, ``1 − max_c n_c / M``.

    Args:
        logits: ``[M, ..., C]``; a member votes for its most probable class.

    Returns:
        ``[...]`` in 0..1 − 1/M (Freeman, 1965).

    Raises:
        SettingError: no member or no class.
    """
    members = _members(logits)
    return 1 - _votes(logits).sum(0).amax(-1) / members


def negative_log_likelihoods(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """``−log p(target)`` of each sample, in nats.

    Args:
        log_probabilities: ``[..., C]``, of one member, of all, or of the ensemble.
        targets: class indices; their shape broadcasts to ``[...]``, so ``[B]`` serves ``[M, B]``.

    Returns:
        ``[...]``; its mean over samples is the NLL.
    """
    _check_targets(targets, log_probabilities)
    index = targets.expand(log_probabilities.shape[:-1]).unsqueeze(-1)
    return -log_probabilities.gather(-1, index).squeeze(-1)


def brier_scores(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """``Σ_c (p_c − [c = target])²`` of each sample, in 0..2 (Brier, 1950).

    The sum runs over all classes (some libraries divide by C, or count one class of two, which
    halves it); the mean over samples is the Brier score.

    Args:
        log_probabilities: ``[..., C]``.
        targets: class indices whose shape broadcasts to ``[...]``.

    Returns:
        ``[...]``.
    """
    _check_targets(targets, log_probabilities)
    classes = torch.arange(log_probabilities.shape[-1], device=targets.device)
    wanted = (targets.unsqueeze(-1) == classes).to(log_probabilities.dtype)
    return (log_probabilities.exp() - wanted).square().sum(-1)


def is_correct(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Whether the most probable class is the target; booleans ``[...]``, their mean the accuracy.

    Args:
        log_probabilities: ``[..., C]`` (or logits); of equal classes the first counts.
        targets: class indices whose shape broadcasts to ``[...]``.
    """
    _check_targets(targets, log_probabilities)
    return log_probabilities.argmax(-1) == targets


def _log_probabilities(logits: Tensor) -> Tensor:
    _members(logits)
    return logits.log_softmax(-1, dtype=_widened(logits))


def _widened(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)  # half precision is for layers alone


def _members(logits: Tensor) -> int:
    if logits.ndim < 2 or not logits.shape[0] or not logits.shape[-1]:
        accepted = "[M, ..., C] with at least one member and one class is needed"
        raise SettingError("shape of logits", list(logits.shape), accepted)
    return logits.shape[0]


def _sizes(values: Tensor) -> Tensor:
    """1, 2, …, M along the first axis of ``values``, with axes of length 1 after it."""
    sizes = torch.arange(1, values.shape[0] + 1, device=values.device, dtype=values.dtype)
    return sizes.reshape(-1, *[1] * (values.ndim - 1))


def _votes(logits: Tensor) -> Tensor:
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return (logits.argmax(-1, keepdim=True) == classes).to(_widened(logits))


def _pairwise(votes: Tensor, members: Tensor) -> Tensor:
    """Share of pairs that differ, of ``votes [..., C]`` by ``members [...]`` members."""
    differing = members * members - votes.square().sum(-1)  # ordered pairs
    return differing / (members * (members - 1)).clamp_min(1)


def _check_targets(targets: Tensor, log_probabilities: Tensor) -> None:
    """Refuse what is no class of the C; padding too, which has no score."""
    check_labels(targets, log_probabilities.shape[-1], padded=False)
