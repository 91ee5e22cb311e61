"""``metalearn attribute``: which training examples made a run's network what it is."""

from __future__ import annotations

import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from metalearn.attribution.attributing import Attributed
from metalearn.attribution.findings import Findings
from metalearn.attribution.findings_figures import track_findings
from metalearn.attribution.findings_file import save_findings
from metalearn.attribution.leaving_out import CHANCE, change_in_words
from metalearn.attribution.report_page import write_page
from metalearn.cli.attributed_findings import findings_of_run
from metalearn.cli.attributed_settings import check
from metalearn.cli.determinism import determinism
from metalearn.cli.error_messages import one_sentence_errors
from metalearn.cli.given_settings import given_settings
from metalearn.cli.markdown import markdown
from metalearn.cli.run_config import saved_config
from metalearn.cli.run_folders import claimed, existing_run, writing_to
from metalearn.tracking import RunTracker, write_json

__all__ = ["attribute_run", "check"]


@one_sentence_errors()
def attribute_run(config: DictConfig) -> None:
    """Score examples by every method that is asked for; prints a table, writes files and a page.

    Raises:
        SettingError, DataError: what a user can mend.
        StorageError: the run's folder cannot be written to.
    """
    check(config, given_settings(HydraConfig.get()))
    folder = existing_run(config.run, "run")
    saved = saved_config(folder, trust=config.trust)
    with claimed(folder, "run"), determinism(saved), writing_to(folder):
        started = time.monotonic()
        findings, found, step = findings_of_run(folder, config, saved)
        _write(folder, config, step, findings, found, time.monotonic() - started)


def _write(
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
    tracker = RunTracker(folder)
    try:
        track_findings(tracker, findings, step=step, top=config.top)
    finally:
        tracker.close()
    print(f"{findings.run}, {findings.state}: {findings.target_count} targets of {config.split}, "
          f"{findings.example_count} examples\n")  # fmt: skip
    print(_table(findings, found))
    if findings.leave_k_out is not None:
        print(f"\n{_leave_k_out_table(findings)}")
    for warning in findings.warnings:
        print(f"warning: {warning}")
    print(f"written: {path}.json, .npz and .html, and figures to {folder / 'tensorboard'}")


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
            row.append("" if score is None else f"{score.mean:.3f} ± {score.interval95:.3f}")
        row += [f"{found.disagreement[name]:.3f}"] if found.disagreement else []
        rows.append(row)
    return markdown(heads, rows)


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
