"""How well an uncertainty tells data of another distribution from the training distribution.

Axes: M members, N samples, C classes, R resamples; any axes before the samples are scored side by
side. Out of distribution is the positive class: the larger a score, the more it points there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metalearn.core.bayes.predictive import entropy, running_mean_log_probabilities, uncertainty
from metalearn.core.tree import check_floating, check_tensors
from metalearn.errors import SettingError, check_whole
from metalearn.signatures import checked

__all__ = ["OODScores", "ood_scores", "uncertainty_scores"]

Of = Literal["ensemble", "members", "sizes"]

_LEVEL = 0.95  # of the true positive rate, and of the intervals
_ROWS = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class OODScores:
    """Detection scores, each ``[...]`` (float64), with the ends of their 95% intervals.

    Attributes:
        auroc: probability that a sample from outside scores higher than one from inside, ties
            counted half.
        fpr95: share of samples from inside that score at least the highest threshold which at
            least 95% of those from outside reach.
        auroc_interval: (low, high), or None where no resamples were asked for.
        fpr95_interval: the same.
    """

    auroc: Tensor
    fpr95: Tensor
    auroc_interval: tuple[Tensor, Tensor] | None
    fpr95_interval: tuple[Tensor, Tensor] | None


@checked
def uncertainty_scores(logits: Tensor, *, of: Of = "ensemble") -> dict[str, Tensor]:
    """Three scores of each sample that grow with uncertainty.

    ``max_probability``: 1 − the probability of the most probable class; ``entropy`` of the
    prediction and ``mutual_information`` of prediction and member, in nats.

    Args:
        logits: ``[M, ..., C]``.
        of: ``"ensemble"`` scores the mean prediction, ``[...]``; ``"members"`` each member alone,
            ``[M, ...]``, whose mutual information is 0; ``"sizes"`` the mean prediction of the
            first 1..M members, ``[M, ...]``.

    Raises:
        SettingError: no member or no class, or another ``of``.
    """
    if of not in get_args(Of):
        raise SettingError("of", of, f"one of {', '.join(get_args(Of))} is needed")
    check_floating(logits, "logits")
    if of == "members":
        rows = [uncertainty_scores(member.unsqueeze(0)) for member in logits]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    log_p = running_mean_log_probabilities(logits)
    if of == "ensemble":
        total, _, mutual = uncertainty(logits)
        log_p = log_p[-1]
    else:
        total = entropy(log_p)
        sizes = torch.arange(1, len(logits) + 1, device=logits.device)
        sizes = sizes.reshape(-1, *[1] * (total.ndim - 1))
        alone = entropy(logits.log_softmax(-1, dtype=log_p.dtype))
        mutual = (total - alone.cumsum(0) / sizes).clamp_min(0)
    least = -torch.expm1(log_p.amax(-1))
    return {"max_probability": least, "entropy": total, "mutual_information": mutual}


@checked
def ood_scores(
    in_scores: Tensor,
    out_scores: Tensor,
    *,
    resamples: int = 1000,
    generator: torch.Generator | None = None,
) -> OODScores:
    """AUROC and the false positive rate at 95% true positives, out of distribution as positive.

    Intervals are percentiles of a bootstrap that draws samples from inside and outside apart; they
    speak of the samples, not of the randomness of training. A perfect separation has an interval of
    no width. Hendrycks and Gimpel, ICLR 2017 (arXiv 1610.02136).

    Args:
        in_scores: ``[..., N]``, of samples of the training distribution.
        out_scores: ``[..., N']``, of samples from outside, with the same axes before.
        resamples: bootstrap resamples; 0 gives no intervals.
        generator: of the resamples, on the CPU; needed unless ``resamples`` is 0.

    Raises:
        SettingError: no samples, NaN, axes that differ, or resamples without a generator.
    """
    _check(in_scores, out_scores, resamples, generator)
    axes = in_scores.shape[:-1]
    inside = in_scores.detach().cpu().double().reshape(-1, in_scores.shape[-1])
    outside = out_scores.detach().cpu().double().reshape(-1, out_scores.shape[-1])
    rows = [_row(i, o, resamples, generator) for i, o in zip(inside, outside)]
    points, low, high = torch.stack(rows).movedim(0, -1).reshape(3, 2, *axes)
    if not resamples:
        return OODScores(points[0], points[1], None, None)
    return OODScores(points[0], points[1], (low[0], high[0]), (low[1], high[1]))


def _row(
    inside: Tensor, outside: Tensor, resamples: int, generator: torch.Generator | None
) -> Tensor:
    """Value, low and high end of AUROC and FPR95: ``[3, 2]``."""
    # Sorted once: a resample only changes how often each distinct value stands on either side.
    values, place = torch.cat([inside, outside]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    where_in, where_out = place[: len(inside)], place[len(inside) :]
    ones = _tally(where_in[None], len(values)), _tally(where_out[None], len(values))
    point = _from_tallies(*ones)[:, 0]
    if not resamples:
        return point.expand(3, 2)
    chunk, drawn = max(1, _ROWS // len(place)), []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        again = [_drawn(where, rows, generator) for where in (where_in, where_out)]
        drawn.append(_from_tallies(*(_tally(places, len(values)) for places in again)))
    tail = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64)
    ends = torch.cat(drawn, -1).quantile(tail, dim=-1)
    return torch.cat([point[None], ends])


def _drawn(places: Tensor, rows: int, generator: torch.Generator | None) -> Tensor:
    return places[torch.randint(len(places), (rows, len(places)), generator=generator)]


def _tally(places: Tensor, values: int) -> Tensor:
    """How often each of the sorted distinct values occurs: ``[R, N]`` → ``[R, values]``."""
    flat = places + values * torch.arange(len(places)).unsqueeze(-1)
    return torch.bincount(flat.flatten(), minlength=len(places) * values).reshape(-1, values)


def _from_tallies(inside: Tensor, outside: Tensor) -> Tensor:
    """AUROC and FPR95 of each resample, ``[2, R]``."""
    n_in, n_out = inside.sum(-1), outside.sum(-1)
    below = inside.cumsum(-1) - inside
    twice = (outside * (2 * below + inside)).sum(-1)  # pairs, in whole numbers
    auroc = twice.double() / (2 * n_in * n_out)
    # samples at or above each value; the last value that enough of the positives reach
    reach_out = n_out.unsqueeze(-1) - (outside.cumsum(-1) - outside)
    enough = reach_out.double() >= _LEVEL * n_out.unsqueeze(-1)
    threshold = enough.sum(-1, keepdim=True) - 1
    fpr = (n_in.unsqueeze(-1) - below).gather(-1, threshold).squeeze(-1).double() / n_in
    return torch.stack([auroc, fpr])


def _check(
    inside: Tensor, outside: Tensor, resamples: int, generator: torch.Generator | None
) -> None:
    check_whole("resamples", resamples, 0)
    if resamples and generator is None:
        raise SettingError("generator", None, "a torch.Generator is needed for the resamples")
    for name, scores in (("in_scores", inside), ("out_scores", outside)):
        check_tensors(scores, name)
        if scores.ndim < 1 or not scores.numel():
            accepted = "[..., N] with at least one sample is needed"
            raise SettingError(f"shape of {name}", list(scores.shape), accepted)
        if bool(scores.isnan().any()):
            raise SettingError(name, float("nan"), "scores without NaN are needed")
    if inside.shape[:-1] != outside.shape[:-1]:
        accepted = f"{list(inside.shape[:-1])} before the samples is needed, as in_scores has it"
        raise SettingError("shape of out_scores", list(outside.shape), accepted)
