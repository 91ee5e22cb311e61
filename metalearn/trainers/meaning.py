"""What the numbers of a test mean, in one sentence that says what would be alarming.

Axes: K inner steps.
"""

from __future__ import annotations

import math

__all__ = ["of_adaptation", "of_classes", "of_targets"]

_CALIBRATED, _MISLEADING = 0.05, 0.1  # expected calibration errors
_POINTS = 0.005  # of an accuracy: what is less is no difference
_FEW = 100  # samples, below which a calibration error is mostly chance
_COVERED = 0.95  # share of targets that the intervals are made for
_ABOUT = 0.03


def of_classes(
    accuracy: float,
    ece: float,
    confidence: float,
    samples: int,
    *,
    median: float | None = None,
    mended: bool = False,
) -> str:
    """Of an ensemble's mean prediction, or of one network's.

    Args:
        accuracy: share of samples that are right.
        ece: expected calibration error.
        confidence: mean probability of the predicted class.
        samples: how many there are.
        median: accuracy of the median member; None of one network.
        mended: whether a temperature stands beside it.
    """
    off = "high" if confidence > accuracy else "low"
    if math.isnan(ece):
        text = "there is no calibration error to judge it by"
    elif samples < _FEW:
        text = f"{samples} samples are too few to judge probabilities by"
    elif ece <= _CALIBRATED:
        text = f"its probabilities can be taken as they are: an ECE up to {_CALIBRATED} is usual"
    else:
        how = "is alarming" if ece > _MISLEADING else "is worth a look"
        text = (
            f"an ECE of {ece:.2f} {how} (usual: up to {_CALIBRATED}): probabilities are too {off}"
        )
        text += ", which the temperature may mend" if mended else ""
    if median is None or math.isnan(accuracy - median):
        return f"{text[0].upper()}{text[1:]}."
    gain = accuracy - median
    if gain > _POINTS:
        first = f"Together members are right {100 * gain:.1f} points more often than the median one"
    elif gain < -max(_POINTS, 1 / math.sqrt(samples)):
        first = f"Alarming: together members are right {-100 * gain:.1f} points less often than one"
    elif accuracy >= 1 - _POINTS:
        first = "Together members are right nearly always, as the median one is"
    else:
        first = "Together members are no better than the median one"
    return f"{first}; {text}."


def of_targets(coverage: float, epistemic: float | None, samples: int) -> str:
    """Of real targets.

    Args:
        coverage: share of targets within the central 95 % intervals.
        epistemic: share of the variance that lies between members; None of one network.
        samples: how many targets there are, at least 1.
    """
    about = max(_ABOUT, 1.96 * math.sqrt(_COVERED * (1 - _COVERED) / samples))
    if math.isnan(coverage):
        text = "No interval holds anything here, so that nothing tells how sure it may be"
    elif coverage < _COVERED - about:
        text = f"Alarming: intervals made for 95 % hold {100 * coverage:.1f} %, so it is too sure"
    elif coverage > _COVERED + about:
        text = f"Intervals made for 95 % hold {100 * coverage:.1f} %: wider than they need to be"
    else:
        text = f"Intervals made for 95 % hold {100 * coverage:.1f} %, as so many should"
    if epistemic is None or math.isnan(epistemic):
        return f"{text}."
    return (
        f"{text}; {100 * epistemic:.0f} % of the variance lies between members, and more data "
        "would lower it."
    )


def of_adaptation(
    before: tuple[float, float], after: tuple[float, float], *, larger_is_better: bool
) -> str:
    """Of the scores of tasks before and after the inner steps.

    Args:
        before: mean over tasks, and half-width of its 95 % interval.
        after: the same.
        larger_is_better: whether it is an accuracy.
    """
    change = after[0] - before[0] if larger_is_better else before[0] - after[0]
    name = "accuracy" if larger_is_better else "loss"
    if not all(math.isfinite(value) for value in (*before, *after)):
        return "Alarming: the inner steps have no finite outcome, so nothing is known of them."
    if before[1] == after[1] == 0 and change:
        return f"Adaptation changes the {name}; without intervals that is no more than chance."
    if change < 0 and -change > before[1] + after[1]:
        return (
            f"Alarming: adaptation makes the {name} worse by more than the intervals, as where its "
            "steps are too long or the training was too short."
        )
    size = f"{100 * change:.1f} points" if larger_is_better else f"{change:.4g}"
    if change <= before[1] + after[1]:
        return (
            f"Adaptation changes the {name} by less than the intervals ({size}): whether it helps, "
            "so few tasks do not tell."
        )
    return f"Adaptation betters the {name} by {size}, which is more than the intervals."
