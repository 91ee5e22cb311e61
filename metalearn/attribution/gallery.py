"""What of findings is shown: which targets, which examples beside them, as pictures where they are.

Axes: R targets, N training examples; pictures [channels, height, width] in 0..1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metalearn.attribution.findings import Findings
from metalearn.attribution.ranking import Ranked, highest, most_harmful, most_helpful
from metalearn.errors import check_whole
from metalearn.tracking.attribution_figures import ShownExample

__all__ = ["Gallery"]


class Gallery:
    """Chosen targets and examples.

    Args:
        findings: of which they are.
        top: examples of each kind beside a target.
        most_targets: how many are shown; of more, those with the highest losses.

    Raises:
        SettingError: counts below 1.
    """

    def __init__(self, findings: Findings, *, top: int, most_targets: int) -> None:
        check_whole("top", top, 1)
        check_whole("most_targets", most_targets, 1)
        self.findings, self.top = findings, top
        losses = findings.targets.losses.detach().cpu().double()
        hardest = losses.nan_to_num(nan=torch.inf).sort(descending=True, stable=True).indices
        self.targets: list[int] = sorted(hardest[:most_targets].tolist())
        """Rows of the targets that are shown, in order."""
        inputs = (findings.targets.inputs, findings.examples.inputs)
        pictures = [values for values in inputs if values is not None and _are_pictures(values)]
        self._range = _range(pictures) if len(pictures) == len(inputs) else None

    def target_picture(self, row: int) -> Tensor | None:
        """Of a target; None where inputs are no pictures."""
        return self._scaled(self.findings.targets.inputs, row)

    def title(self, row: int) -> str:
        """Where a target is from."""
        return f"{self.findings.split} no. {int(self.findings.targets.rows[row])}"

    def lines(self, row: int) -> list[str]:
        """Label, prediction and loss of a target."""
        targets = self.findings.targets
        lines = [f"label {self.findings.label(targets.labels[row])}"]
        if targets.probabilities is not None:
            lines.append(f"predicted {self.findings.prediction(row)}")
            lines.append(f"probability {float(targets.probabilities[row].max()):.2f}")
        return [*lines, f"loss {float(targets.losses[row]):.3g}"]

    def is_wrong(self, row: int) -> bool:
        """Whether another class than that of the label was predicted."""
        probabilities, label = (
            self.findings.targets.probabilities,
            self.findings.targets.labels[row],
        )
        if probabilities is None or label.dim() or label.is_floating_point():
            return False
        return int(probabilities[row].argmax()) != int(label)

    def helpful(self, method: str, row: int) -> list[ShownExample]:
        """The most helpful examples of a target."""
        return self._shown(most_helpful(self.findings.scores[method][row], self.top))

    def harmful(self, method: str, row: int) -> list[ShownExample]:
        """The most harmful examples of a target."""
        return self._shown(most_harmful(self.findings.scores[method][row], self.top))

    def suspects(self, method: str) -> list[ShownExample]:
        """Examples of the highest scores by themselves, twice as many."""
        return self._shown(highest(self.findings.self_scores[method], 2 * self.top))

    def _shown(self, found: Ranked) -> list[ShownExample]:
        examples = self.findings.examples
        return [
            ShownExample(
                row,
                self.findings.label(examples.labels[row]),
                score,
                self._scaled(examples.inputs, row),
            )
            for row, score in zip(found.examples, found.scores)
        ]

    def _scaled(self, inputs: Tensor | None, row: int) -> Tensor | None:
        if inputs is None or self._range is None:
            return None
        low, high = self._range
        picture = inputs[row].detach().cpu().float().nan_to_num(nan=low)
        return ((picture - low) / (high - low)).clamp(0, 1)


def _are_pictures(inputs: Tensor) -> bool:
    """Whether they are ``[S, channels, height, width]`` of more than lines."""
    return inputs.dim() == 4 and min(inputs.shape[1:]) >= 1 and min(inputs.shape[2:]) >= 2


def _range(pictures: list[Tensor]) -> tuple[float, float]:
    """What is black and what is white in all of them: bytes and 0..1 as they are."""
    if all(values.dtype is torch.uint8 for values in pictures):
        return 0.0, 255.0
    ends = [_ends(values) for values in pictures]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def _ends(values: Tensor) -> tuple[float, float]:
    """The least and the largest finite number; 0 and 1 of none."""
    low, high = (float(end) for end in values.detach().aminmax())
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    finite = values[values.isfinite()]
    return _ends(finite) if finite.numel() else (0.0, 1.0)
