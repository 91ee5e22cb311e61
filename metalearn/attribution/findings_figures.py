"""The figures of findings, for TensorBoard, for files and for a page.

Axes: R targets, N training examples.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from metalearn.attribution.findings import Findings
from metalearn.attribution.gallery import Gallery
from metalearn.attribution.leaving_out import CHANCE
from metalearn.errors import check_whole
from metalearn.signatures import checked
from metalearn.tracking.attribution_figures import examples_figure, target_figure
from metalearn.tracking.leave_k_out_figure import leave_k_out_figure
from metalearn.tracking.score_figures import (
    foretold_figure,
    run_smoothness_figure,
    self_scores_figure,
)
from metalearn.tracking.tracker import Tracker

__all__ = ["example_figures", "score_figures", "track_findings"]


@checked
def track_findings(
    tracker: Tracker, findings: Findings, *, step: int, top: int = 5, most_targets: int = 12
) -> None:
    """Hand all figures of findings to a tracker, as ``attribution/...``.

    Args:
        tracker: whose they are from then on.
        findings: of which they are.
        step: of the run, such as that of the network that is explained.
        top: examples of each kind beside a target.
        most_targets: of more, those with the highest losses are shown.

    Raises:
        SettingError: numbers out of range.
    """
    check_whole("step", step, 0)
    gallery = Gallery(findings, top=top, most_targets=most_targets)
    for name, figure in (score_figures(findings, top=top) | example_figures(gallery)).items():
        tracker.figure(step, f"attribution/{name}", figure)
    tracker.flush()


def score_figures(findings: Findings, *, top: int) -> dict[str, Figure]:
    """Those without examples: against retraining, along the run, scores by themselves."""
    figures = {}
    for subsets in findings.retrained:
        if subsets.predicted:
            share = f"{100 * subsets.left_out:.2g} %"
            figures[f"retrained_without_{share.replace(' %', '_percent')}"] = foretold_figure(
                subsets.predicted,
                subsets.outcomes,
                {name: (found.mean, found.interval95) for name, found in subsets.lds.items()},
                title=f"{len(subsets.outcomes)} retrainings without {share} of the examples",
            )
    if findings.leave_k_out is not None:
        left = findings.leave_k_out
        shares = {name: found.share for name, found in left.flips.items()}
        figures["leave_k_out"] = leave_k_out_figure(
            left.counts, left.changes, shares, chance=CHANCE,
            title="Trained anew without the most helpful examples",
        )  # fmt: skip
    trace, walk = findings.curvature, findings.walk_norms
    if trace is not None or walk is not None:
        curvature = None
        if trace is not None:
            eigenvalues, rates = (
                torch.tensor(x).double() for x in (trace.eigenvalues, trace.rates)
            )
            curvature = (torch.tensor(trace.steps), eigenvalues * rates)
        figures["smoothness"] = run_smoothness_figure(
            curvature, walk, title="Smoothness of the run"
        )
    if findings.self_scores:
        figures["self_scores"] = self_scores_figure(
            findings.self_scores, marked=2 * top, title="Scores of examples by themselves"
        )
    return figures


def example_figures(gallery: Gallery) -> dict[str, Figure]:
    """Each target that is shown beside its examples, by the best method; and the suspects."""
    findings, method = gallery.findings, gallery.findings.best_method
    figures = {}
    for row in gallery.targets if method is not None else []:
        assert method is not None
        figures[f"target_{int(findings.targets.rows[row])}"] = target_figure(
            gallery.target_picture(row),
            gallery.lines(row),
            gallery.helpful(method, row),
            gallery.harmful(method, row),
            title=f"{gallery.title(row)}: scores by {method}",
        )
    for name in findings.self_scores:
        if suspects := gallery.suspects(name):
            figures[f"suspects_{name}"] = examples_figure(
                suspects, title=f"Highest scores by {name}"
            )
    return figures
