"""What ``diagnose`` prints: a short table, and what its numbers mean.

Axes: G models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from metalearn.percent import NAN_MEANS, decimals, percent
from metalearn.trainers.diagnostics import Diagnosis
from metalearn.trainers.diagnostics.result import DiagnosticResult

__all__ = ["diagnosis_lines"]

_READ: Mapping[str, Sequence[str]] = {
    "gradient_norms": ("median", "highest"),
    "noise_scale": ("noise_scale",),
    "cosines": ("pairs", "opposed"),
    "fisher": ("trace_exact", "effective_rank_exact"),
    "eigenvalues": ("hessian_1", "ggn_1"),
    "density": ("lowest", "share_below_minus_highest_by_1000"),
    "traces": ("hessian", "ggn"),
}
"""The numbers of a quantity that are shown; of others all are."""

_SHARPEST = {"hessian_1", "hessian_largest_residual"}
_Found = Mapping[str, DiagnosticResult]


def diagnosis_lines(diagnosis: Diagnosis, batches: Mapping[str, int], path: str) -> list[str]:
    """The table, a sentence for each quantity that has something to say, and what is left out.

    Args:
        diagnosis: found of a run.
        batches: by what was looked at, of how many units a step of the training took the mean.
        path: of the file that has all numbers.
    """
    rows, more = [["of", "quantity", "median", "lowest", "highest"]], 0
    for place, found in diagnosis.findings.items():
        for quantity, result in found.items():
            values = result.rows()
            shown = [n for n in _READ.get(quantity, tuple(values)) if n in values]
            more += len(values) - len(shown)
            rows += [_row(place, quantity, name, result) for name in shown]
    lines = _aligned(rows)
    if any("NaN" in row for row in rows):
        lines.append(NAN_MEANS)
    for place, found in diagnosis.findings.items():
        several = place == "members"
        lines += [f"{place}: {text}" for text in _meaning(found, batches.get(place), several)]
    lines += [f"left out: {what}: {reason}" for what, reason in diagnosis.left_out.items()]
    if more:
        lines.append(f"{more} more numbers, and those by layer, are in {path}")
    return lines


def _row(place: str, quantity: str, name: str, result: DiagnosticResult) -> list[str]:
    values = result.rows()[name]
    shown = [decimals(float(end)) for end in (values.median(), values.min(), values.max())]
    if not values.ndim or len(values) == 1:
        shown[1:] = ["", ""]
    return [place, f"{quantity}: {name}", *shown]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown with columns of one width, texts to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = [f"{'-' * (width + 1)}{'-' if at < 2 else ':'}" for at, width in enumerate(widths)]
    padded = [
        [f"{c:<{w}}" if at < 2 else f"{c:>{w}}" for at, (c, w) in enumerate(zip(row, widths))]
        for row in rows
    ]
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in padded]
    return [head, f"|{'|'.join(rule)}|", *rest]


def _meaning(found: _Found, batch: int | None, several: bool) -> Iterator[str]:
    """What was found of one place: a sentence for what is alarming, and one for all else."""
    judged = list(_judged(found, batch, several))
    for name, which in (("alarming", True), ("not alarming", False)):
        texts = [text for alarming, text in judged if alarming is which]
        if texts:
            yield f"{name}: {'; '.join(texts)}"


def _judged(found: _Found, batch: int | None, several: bool) -> Iterator[tuple[bool, str]]:
    """Whether something is alarming, and what is to be said of it.

    Of several networks gradients and directions are pooled, and no limit of one network's holds.
    """
    if "gradient_norms" in found:
        yield _of_norms(found["gradient_norms"], several)
    if "noise_scale" in found:
        yield _of_noise(_number(found["noise_scale"], "noise_scale"), batch)
    if "cosines" in found and "pairs" in found["cosines"].rows():
        mean = float(found["cosines"].rows()["pairs"].mean())
        text = (
            f"gradients have a mean cosine of {mean:.2f} (0.9: copies; below -0.1: they pull apart)"
        )
        yield not -0.1 <= mean < 0.9, text
    if "eigenvalues" in found and found["eigenvalues"].values.keys() >= _SHARPEST:
        yield _of_eigenvalues(found["eigenvalues"])
    if "density" in found:
        share = _number(found["density"], "share_below_minus_highest_by_1000")
        text = f"{percent(share)} of directions curve down"
        text += (
            ", on the scale of the steepest member" if several else " (10 %: no minimum is near)"
        )
        yield not several and not share < 0.1, text


def _of_norms(result: DiagnosticResult, several: bool) -> tuple[bool, str]:
    lost, middle = _number(result, "non_finite"), _number(result, "median")
    if lost > 0:
        return True, f"{lost:.0f} gradients are not finite"
    if math.isnan(middle):
        return True, "nothing is known of the norms of gradients"
    if not middle > 0:
        return True, "half of the gradients are zero, so nothing is learnt from them"
    times = _number(result, "highest") / middle
    text = f"the longest gradient is {times:.3g} times the median"
    if several:
        return False, f"{text}, of all members"
    return times >= 100, f"{text} (100: it rules a step)"


def _of_noise(scale: float, batch: int | None) -> tuple[bool, str]:
    if math.isnan(scale):
        return True, "the mean gradient cannot be told from noise; more samples= or tasks= may tell"
    if batch is None:
        return False, f"the mean of {scale:.3g} gradients has as much noise as signal"
    times = scale / batch
    text = f"a step's mean of {batch} has {times:.3g} times as much noise as signal"
    return times >= 10, f"{text} (10: a larger batch or smaller steps would help)"


def _of_eigenvalues(result: DiagnosticResult) -> tuple[bool, str]:
    every, apart = (
        result.values[f"hessian_{name}"].double().flatten() for name in ("1", "largest_residual")
    )
    top = float(every.max())  # of the member that is the first to diverge
    if not math.isfinite(top):
        return True, "eigenvalues are not finite"
    if not top > 0:
        return True, "the Hessian's largest eigenvalue is not above 0, as nowhere near a minimum"
    if not bool((apart <= 0.05 * every.abs()).all()):
        return True, "eigenvalues have not settled, so that more iterations= are needed"
    return False, f"without Adam, learning rates up to 2/{top:.3g} = {2 / top:.2g} are stable"


def _number(result: DiagnosticResult, name: str) -> float:
    return float(result.values[name].double().median()) if name in result.values else math.nan
