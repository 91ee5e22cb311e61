"""The figures of findings of a meta-learner, for TensorBoard, for files and for a page.

Axes: T test tasks, Q queries, S support examples, N training tasks.
"""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from metalearn.attribution.gallery import Gallery
from metalearn.attribution.learner_findings import LearnerFindings
from metalearn.attribution.ranking import Ranked
from metalearn.attribution.scored_learner import ADAPTATION, LEFT_OUT
from metalearn.attribution.trained_tasks import task_pictures
from metalearn.errors import check_whole
from metalearn.signatures import checked
from metalearn.tracking.attribution_figures import ShownExample, target_figure
from metalearn.tracking.score_figures import foretold_figure
from metalearn.tracking.tracker import Tracker

__all__ = ["LearnerGallery", "agreement_figure", "track_learner_findings"]


class LearnerGallery:
    """Which test tasks are shown, their queries, and the training tasks beside them.

    Args:
        findings: of which they are.
        top: examples of each kind beside a query, and training tasks beside a test task.
        most_tasks: how many are shown; of more, those with the highest losses.
        most_queries: of a task.

    Raises:
        SettingError: counts below 1.
    """

    def __init__(
        self, findings: LearnerFindings, *, top: int, most_tasks: int = 6, most_queries: int = 2
    ) -> None:
        counts = {"top": top, "most_tasks": most_tasks, "most_queries": most_queries}
        for name, value in counts.items():
            check_whole(name, value, 1)
        self.findings, self.top, self._queries = findings, top, most_queries
        losses = findings.task_losses.double().nan_to_num(nan=torch.inf)
        hardest = losses.sort(descending=True, stable=True).indices[:most_tasks]
        self.tasks: list[int] = sorted(hardest.tolist())
        """Places of the tasks that are shown, in order."""
        self._pictures = task_pictures(findings.tasks)

    def queries(self, place: int) -> Gallery:
        """Those of a task that are shown, with its support examples."""
        found = self.findings.of_task(place)
        return Gallery(found, top=self.top, most_targets=self._queries)

    def disagreement(self, place: int, query: int) -> list[str]:
        """How far members disagree about a query, in words; nothing of one network.

        ``query`` is its place in the task's query set.
        """
        method = self.findings.method
        apart = self.findings.disagreement.get(method or "")
        return [] if apart is None else [f"members disagree {float(apart[place, query]):.2f}"]

    def picture(self, place: int) -> Tensor | None:
        """Of a test task: an example of each class; None where inputs are no pictures."""
        return None if self._pictures is None else _scaled(self._pictures, place)

    def trained(self, place: int) -> tuple[list[ShownExample], list[ShownExample]]:
        """The training tasks that helped and that harmed a test task most."""
        helpful, harmful = self.findings.trained_ranks(place, self.top)
        return self._shown(helpful), self._shown(harmful)

    def _shown(self, found: Ranked) -> list[ShownExample]:
        trained = self.findings.trained
        assert trained is not None
        names, pictures = trained.names, trained.pictures
        return [
            ShownExample(
                trained.numbers[place],
                "training task" if names is None else names[place],
                score,
                None if pictures is None else _scaled(pictures, place),
            )
            for place, score in zip(found.examples, found.scores)
        ]


@checked
def track_learner_findings(
    tracker: Tracker, findings: LearnerFindings, *, step: int, top: int = 5
) -> None:
    """Hand all figures and numbers of findings to a tracker, as ``attribution/...``.

    Args:
        tracker: whose they are from then on.
        findings: of which they are.
        step: of the training, such as that of the learner that is explained.
        top: examples of each kind beside a query.

    Raises:
        SettingError: numbers out of range.
    """
    check_whole("step", step, 0)
    gallery = LearnerGallery(findings, top=top)
    figures = {}
    if (scatter := agreement_figure(findings)) is not None:
        figures["support_left_out"] = scatter
    for place in gallery.tasks:
        number = findings.numbers[place]
        if findings.method is not None:
            figures |= _of_queries(gallery, place, findings.method)
        if findings.trained is not None:
            title = f"Training tasks that helped and harmed {findings.split} task {number}"
            loss = f"loss {float(findings.task_losses[place]):.3g}"
            picture = gallery.picture(place)
            shown = target_figure(picture, [loss], *gallery.trained(place), title=title)
            figures[f"task_{number}_training_tasks"] = shown
    for name, figure in figures.items():
        tracker.figure(step, f"attribution/{name}", figure)
    tracker.scalars(step, _numbers(findings))
    tracker.flush()


def agreement_figure(findings: LearnerFindings) -> Figure | None:
    """Scores through adaptation against leaving examples out; None where there are not both."""
    if findings.agreement is None:
        return None
    real = findings.real_queries[..., None] & findings.real_examples[:, None]
    one, other = (
        findings.scores[name].masked_fill(~real, torch.nan).flatten(0, 1)
        for name in (ADAPTATION, LEFT_OUT)
    )
    known = (findings.agreement.mean, findings.agreement.interval95)
    return foretold_figure(
        {ADAPTATION: one}, other.T, {ADAPTATION: known},
        title="Support examples left out, one by one", outcome="change of the query's loss",
    )  # fmt: skip


def _of_queries(gallery: LearnerGallery, place: int, method: str) -> dict[str, Figure]:
    number, shown = gallery.findings.numbers[place], gallery.queries(place)
    figures = {}
    for row in shown.targets:
        query = int(shown.findings.targets.rows[row])
        figures[f"task_{number}_query_{query}"] = target_figure(
            shown.target_picture(row),
            [*shown.lines(row), *gallery.disagreement(place, query)],
            shown.helpful(method, row),
            shown.harmful(method, row),
            title=f"{shown.title(row)}: support examples by {method}",
        )
    return figures


def _numbers(findings: LearnerFindings) -> dict[str, float]:
    found = {
        f"attribution/disagreement_{name}": float(values.nanmean())
        for name, values in findings.disagreement.items()
    }
    if findings.agreement is not None and math.isfinite(findings.agreement.mean):
        found["attribution/correlation_with_leaving_out"] = findings.agreement.mean
    return found


def _scaled(pictures: Tensor, place: int) -> Tensor:
    low, high = float(pictures.min()), float(pictures.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return ((pictures[place] - low) / max(high - low, 1e-12)).clamp(0, 1)
