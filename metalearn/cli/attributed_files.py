"""What ``attribute`` writes and says: tables on the screen, files in the run's folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from metalearn.attribution.attributing import Attributed
from metalearn.attribution.datamodels import DatamodelingScore
from metalearn.attribution.findings import Findings
from metalearn.attribution.findings_figures import track_findings
from metalearn.attribution.findings_file import save_findings
from metalearn.attribution.learner_figures import track_learner_findings
from metalearn.attribution.learner_findings import LearnerFindings
from metalearn.attribution.learner_findings_file import save_learner_scores
from metalearn.attribution.learner_page import write_learner_page
from metalearn.attribution.leaving_out import CHANCE, change_in_words
from metalearn.attribution.report_page import write_page
from metalearn.attribution.scored_learner import ADAPTATION, LearnerScores
from metalearn.cli.markdown import markdown
from metalearn.evaluation.seeds import SeedMean
from metalearn.tracking import RunTracker, write_json

__all__ = ["write_learner", "write_run"]


def write_run(
    folder: Path, config: DictConfig, step: int, findings: Findings, found: Attributed,
    seconds: float,
) -> None:  # fmt: skip
    """The table on the screen; numbers, scores, page and figures in the run's folder."""
    path = folder / f"attribution-{config.split}"
    numbers = findings.as_json(top=max(config.top, 10))
    if found.disagreement:
        numbers["disagreement_of_members"] = found.disagreement
    write_json(path.with_suffix(".json"), {"step": step, "seconds": seconds, **numbers})
    save_findings(path.with_suffix(".npz"), findings)
    write_page(path.with_suffix(".html"), findings, top=config.top)
    with _tracker(folder) as tracker:
        track_findings(tracker, findings, step=step, top=config.top)
    print(f"{findings.run}, {findings.state}: {findings.target_count} targets of {config.split}, "
          f"{findings.example_count} examples\n")  # fmt: skip
    print(_table(findings, found))
    if findings.leave_k_out is not None:
        print(f"\n{_leave_k_out_table(findings)}")
    _say_the_rest(folder, path, findings.warnings)


def write_learner(
    folder: Path, config: DictConfig, step: int, findings: LearnerFindings, found: LearnerScores,
    seconds: float,
) -> None:  # fmt: skip
    """The same of a meta-learner."""
    path = folder / f"attribution-{config.split}"
    numbers = findings.as_json(top=config.top)
    write_json(path.with_suffix(".json"), {**numbers, "step": step, "seconds": seconds})
    save_learner_scores(path.with_suffix(".npz"), findings, found.by_member)
    write_learner_page(path.with_suffix(".html"), findings, top=config.top)
    with _tracker(folder) as tracker:
        track_learner_findings(tracker, findings, step=step, top=config.top)
    trained = 0 if findings.trained is None else len(findings.trained.numbers)
    examples, queries = len(findings.tasks.support[1][0]), findings.losses.shape[1]
    print(
        f"{findings.run}, {findings.state}: {findings.task_count} tasks of {config.split}, each of "
        f"{examples} support examples and {queries} queries; {trained} training tasks\n"
    )
    print(_learner_table(findings))
    _say_the_rest(folder, path, findings.warnings)


def _table(findings: Findings, found: Attributed) -> str:
    """Markdown: what each method took, and how well it foretold retraining."""
    shares = [f"rank correlation without {100 * s.left_out:.2g} %" for s in findings.retrained]
    heads = ["method", "seconds", *shares]
    heads += ["disagreement of members"] if found.disagreement else []
    rows = []
    for name in findings.scores:
        row = [name, f"{findings.seconds[name]:.3g}"]
        for subsets in findings.retrained:
            score = subsets.lds.get(name)
            row.append("" if score is None else _with_interval(score))
        row += [f"{found.disagreement[name]:.3f}"] if found.disagreement else []
        rows.append(row)
    return markdown(heads, rows)


def _with_interval(score: SeedMean | DatamodelingScore) -> str:
    """A mean, with its interval where there is one: of one target or task there is none."""
    half = f" ± {score.interval95:.3f}" if math.isfinite(score.interval95) else ""
    return f"{score.mean:.3f}{half}"


def _leave_k_out_table(findings: Findings) -> str:
    """Markdown: what retraining without the most helpful examples of each target did."""
    left = findings.leave_k_out
    assert left is not None
    heads = ["left out are the most helpful by"]
    for count in left.counts:
        heads += [f"{count}: loss"] + [f"{count}: flipped"] * bool(left.flips)
    rows = []
    for name in left.changes:
        row = ["(as many by chance)" if name == CHANCE else name]
        for place in range(len(left.counts)):
            row.append(change_in_words(left.change(name, place)))
            if left.flips:
                row.append(f"{100 * float(left.flips[name].share[place]):.0f} %")
        rows.append(row)
    return markdown(heads, rows)


def _learner_table(findings: LearnerFindings) -> str:
    """Markdown: what each method took, and how far scores are what leaving out does."""
    heads = ["scores of", "by", "seconds", "rank correlation with leaving out"]
    heads += ["disagreement of members"] if findings.disagreement else []
    rows = []
    for name in findings.scores:
        row = ["support examples", findings.words(name), f"{findings.seconds[name]:.3g}"]
        agreement = findings.agreement if name == ADAPTATION else None
        row.append("" if agreement is None else _with_interval(agreement))
        if findings.disagreement:
            row.append(f"{float(findings.disagreement[name].nanmean()):.3f}")
        rows.append(row)
    if findings.trained is not None:
        row = ["training tasks", "gradient products (TracIn)"]
        row += [f"{findings.seconds['training_tasks']:.3g}", ""]
        rows.append([*row, ""] if findings.disagreement else row)
    return markdown(heads, rows)


@contextmanager
def _tracker(folder: Path) -> Iterator[RunTracker]:
    tracker = RunTracker(folder)
    try:
        yield tracker
    finally:
        tracker.close()


def _say_the_rest(folder: Path, path: Path, warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"written: {path}.json, .npz and .html, and figures to TensorBoard")
