"""The page of a run: what it says, that it needs nothing else, what it makes of damaged folders."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from metalearn.cli.comparison.runs import ComparedRun, Span
from metalearn.cli.log_lines import WARNED, LogLines
from metalearn.cli.reports.page import page_of_run
from metalearn.cli.reports.story import Picture, RunStory, read_story, tamed
from metalearn.cli.reports.tables import found_tables, shown
from metalearn.tracking import RunTracker
from tests.support.commands import ROOT, TINY, Outcome, call
from tests.support.html_pages import Read, check_self_contained

SAVED = sorted(path.parent for path in (ROOT / "tests" / "saved_runs").glob("v*/*/config.yaml"))
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\ud800$\\frac'
Caller = Callable[..., Outcome]


@pytest.fixture
def commanded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Caller:
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> Outcome:
        return call(script, *arguments, monkeypatch=monkeypatch, capsys=capsys)

    return run


@pytest.fixture
def trained(commanded: Caller) -> Path:
    assert commanded("train", *TINY, "hydra.run.dir=run").code == 0
    return Path("run")


@pytest.mark.parametrize("folder", SAVED[::3], ids=lambda path: f"{path.parent.name}-{path.name}")
def test_saved_runs_have_a_page_that_needs_nothing_else(folder: Path) -> None:
    story = read_story(folder, folder.name)
    page = page_of_run(story)
    check_self_contained(page)
    text = Read(page).text
    assert ("not finished" in text) == folder.name.endswith("interrupted")
    assert all(shown(name, value) in text for name, value in story.run.numbers.items())


def test_a_page_says_what_was_trained_what_came_of_it_and_where_from(
    trained: Path, commanded: Caller
) -> None:
    done = commanded("report", "run=run")
    assert done.code == 0 and done.out.endswith("written: run/report.html\n")
    read = Read((trained / "report.html").read_text(encoding="utf-8"))
    results = json.loads((trained / "results.json").read_text())
    text = " ".join(read.text.split())
    for name, value in results["headline"].items():
        assert shown(name, value) in text
    for report in results["test"].values():
        assert all(shown("loss", row["mean"]) in text for row in report["loss"])
    order = ("SinusoidTasks", "Results", "How it went", "Figures", "Settings", "Provenance")
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)
    origin = json.loads((trained / "provenance.json").read_text())
    assert origin["git"]["revision"] in text and "trainer.steps=4" in text
    charts = [i for i in read.named("img") if "over the steps" in (i["alt"] or "")]
    figures = [i for i in read.named("img") if "after 4 steps" in (i["alt"] or "")]
    assert len(charts) >= 4 and figures


@pytest.mark.parametrize("folder", SAVED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_page_explains_the_bands_that_it_has_and_no_others(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = Counter(name for line in lines for name in line)
    banded = {
        n.removesuffix("_low") for n, count in times.items() if n.endswith("_low") and count > 1
    }
    tasks = {n for n in banded if n.endswith(("_before", "_after")) and "member_" not in n}
    text = Read(page_of_run(read_story(folder, "run"))).text
    assert ("95 % interval of the mean over the tasks of that step" in text) == bool(tasks)
    assert ("reaches from the lowest to the highest" in text) == bool(banded - tasks)
    lost = any(value is None for line in lines for value in line.values())
    assert ("A cross marks" in text) == lost


def test_a_page_goes_where_it_is_asked_to(trained: Path, commanded: Caller) -> None:
    before = set(trained.rglob("*"))
    assert commanded("report", "run=run", "file=mine.html").code == 0
    assert Path("mine.html").is_file() and set(trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["run=nowhere"], "run='nowhere'"),
        ([], "run"),
        (["run=5"], "run=5"),
        (["run=run", "file=run"], "file='run'"),
        (["run=run", "file=nowhere/page.html"], "file='nowhere/page.html'"),
        (["run=run", "file=5"], "file=5"),
        (["run=run", "file=''"], "file=''"),
        (["run=run", "file=run/config.yaml"], "file='run/config.yaml': a name that ends in .html"),
        (["run=empty"], "at least one run is needed"),
        (["run=[run,nowhere]"], "run='nowhere'"),
        ([f"run={'x' * 5000}"], "File name too long"),
        (["run=run/config.yaml"], "the folder of a run, with its config.yaml, is needed"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_asked_wrongly_is_one_sentence(
    settings: list[str], sentence: str, commanded: Caller
) -> None:
    shutil.copytree(SAVED[0], "run")
    Path("empty").mkdir()
    before = set(Path().rglob("*"))
    done = commanded("report", *settings)
    assert done.code == 2 and done.err.count("\n") == 1 and sentence in done.err
    assert len(done.err) < 500
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 10**5], ids=len)
@pytest.mark.parametrize("name", ["provenance.json", "evaluation-test.json"])
def test_what_is_damaged_beside_the_results_is_named_and_left_out(
    content: bytes, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(SAVED[0], folder)
    (folder / name).write_bytes(content)
    story = read_story(folder, "run")
    assert any(name in warning for warning in story.warnings)
    check_self_contained(page_of_run(story))


def test_torn_records_and_event_files_cost_themselves_alone(trained: Path) -> None:
    whole = read_story(trained, "run")
    with (trained / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "train/lo')
    (events,) = trained.glob("events*")
    events.write_bytes(events.read_bytes()[:-7])
    torn = read_story(trained, "run")
    assert torn.records == whole.records
    assert set(torn.pictures) <= set(whole.pictures) and whole.pictures
    events.write_bytes(b"no events")
    assert not read_story(trained, "run").pictures


def test_results_that_are_none_are_refused(commanded: Caller) -> None:
    folder = next(path for path in SAVED if path.name.endswith("finished"))
    shutil.copytree(folder, "run")
    Path("run/results.json").write_text("[]")
    done = commanded("report", "run=run")
    assert done.code == 2 and done.err.count("\n") == 1 and "results.json" in done.err
    assert not Path("run/report.html").exists()


@pytest.mark.parametrize("content", ['{"headline"', "[1]", '{"headline": {"best/loss": NaN}}'])
def test_results_that_are_cut_short_are_one_sentence(content: str, commanded: Caller) -> None:
    finished = next(path for path in SAVED if (path / "results.json").exists())
    shutil.copytree(finished, "run")
    Path("run/results.json").write_text(content)
    done = commanded("report", "run=run")
    assert done.code == 2 and done.err.count("\n") == 1 and len(done.err) < 500
    assert "run/results.json" in done.err and not Path("run/report.html").exists()


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "train.log", "metrics.jsonl"])
def test_links_out_of_the_folder_tell_nothing_of_what_they_lead_to(
    name: str, commanded: Caller
) -> None:
    finished = next(path for path in SAVED if (path / "results.json").exists())
    shutil.copytree(finished, "run")
    Path("secret").write_text("hush, a secret\n" * 3)
    Path("run", name).unlink(missing_ok=True)
    Path("run", name).symlink_to(Path("secret").absolute())
    done = commanded("report", "run=run")
    page = Path("run/report.html").read_text() if done.code == 0 else done.err
    assert "hush" not in page and (done.code == 0 or done.err.count("\n") == 1)


def test_a_name_of_markup_is_a_text(commanded: Caller) -> None:
    name = "<img src=x onerror=alert(1)>" + 150 * "x"
    shutil.copytree(SAVED[0], name)
    assert commanded("report", f"run='{name}'").code == 0
    page = Path(name, "report.html").read_text(encoding="utf-8")
    check_self_contained(page)
    assert name in Read(page).text


def test_a_page_that_cannot_be_written_is_one_sentence(commanded: Caller) -> None:
    shutil.copytree(SAVED[0], "run")
    Path("run/report.html").mkdir()
    done = commanded("report", "run=run")
    assert done.code == 1 and done.err.count("\n") == 1 and "file=<name>.html" in done.err


def test_texts_of_a_folder_are_texts() -> None:
    run = ComparedRun(
        HOSTILE,
        {HOSTILE: HOSTILE, "trainer": {"_target_": HOSTILE, "steps": HOSTILE}},
        0,
        {f"best/{HOSTILE}": 0.5, HOSTILE: math.nan},
        {HOSTILE: Span(0.0, 1.0, HOSTILE)},
        HOSTILE,
    )
    test = {HOSTILE: {HOSTILE: HOSTILE, "of": {HOSTILE: {"a": 1}, HOSTILE + "2": {"a": 2}}}}
    story = RunStory(
        run,
        {"reason": HOSTILE, "steps": 3, "best_step": HOSTILE, "test": test},
        [
            {"step": n, f"{HOSTILE.replace('/', '')}/x": 1.0, f"train/{HOSTILE[:9]}": n}
            for n in (1, 2)
        ],
        {HOSTILE: {HOSTILE: HOSTILE, "command": [HOSTILE]}},
        [HOSTILE],
        {HOSTILE: Picture(1, b"\x89PNG")},
        {HOSTILE: {"scores": {HOSTILE: [1, 2]}}},
    )
    page = page_of_run(story)
    check_self_contained(page)
    assert "<script>alert(1)</script>" in Read(page).text  # as words


def test_pictures_are_png_and_no_others(tmp_path: Path) -> None:
    shutil.copytree(SAVED[0], tmp_path / "run")
    tracker = RunTracker(tmp_path / "run")
    for step in (1, 2):
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, str(step))
        tracker.figure(step, "a/figure", figure)
    tracker.close()
    (picture,) = read_story(tmp_path / "run", "run").pictures.values()
    assert picture.step == 2 and picture.png.startswith(b"\x89PNG")


def test_the_log_marks_what_warns_and_the_page_repeats_it(tmp_path: Path) -> None:
    lines = LogLines("%(asctime)s %(message)s", "%H:%M:%S")
    levels = {logging.INFO: None, logging.WARNING: "warning", logging.ERROR: "error"}
    written = []
    for level, word in levels.items():
        record = logging.LogRecord("metalearn", level, "", 0, "of %s", ("something",), None)
        written.append(lines.format(record))
        found = WARNED.fullmatch(written[-1])
        assert (found and found["sentence"]) == (word and f"{word}: of something")
        assert re.fullmatch(r"\d\d:\d\d:\d\d .*of something", written[-1])
    shutil.copytree(SAVED[0], tmp_path / "run")
    (tmp_path / "run" / "train.log").write_text("\n".join([*written, *written]))
    story = read_story(tmp_path / "run", "run")
    assert story.warnings == ["of something", "error: of something"]
    assert Read(page_of_run(story)).text.count("of something") == 2


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"accuracy": 0.5, "loss": 2.0}, ["accuracy: 50.0 %; loss: 2"]),
        ({"loss": {"mean": 1.0, "interval95": 0.25}}, ["loss", "1 ± 0.25"]),
        ({"loss": {"mean": 1.0, "interval95": None}}, ["1"]),
        (
            {"accuracy": [{"inner_step": s, "mean": s / 4, "interval95": 0.1} for s in (0, 1)]},
            ["inner steps", "25.0 % ± 10.0 %"],
        ),
        (
            {"ensemble": {"nll": 1.0}, "members": [{"nll": 1.0}, {"nll": 2.0}, {"nll": 4.0}]},
            ["the ensemble", "members: median"],
        ),
        (
            {"ensemble": {"nll": 1.0, "disagreement": 0.0}, "members": [{"nll": 1.0}]},
            ["likelihood: 1"],
        ),
        ({"by_size": [{"nll": 1.0}, {"nll": 2.0}]}, ["by size"]),
        ({"of": {"auroc": 0.5, "auroc_interval": [0.25, 0.75]}}, ["AUROC", "0.25 to 0.75"]),
        ({"matrix": [[1.0, 2.0]], "none": None}, ["none: –"]),
        ({"trace": [3.0, 1.0, 2.0]}, ["trace: 2 (1 to 3)"]),
        ({"value": math.inf}, ["value: not finite"]),
    ],
    ids=str,
)
def test_findings_are_told_by_their_shape(found: dict[str, Any], words: list[str]) -> None:
    text = "".join(Read(part).text for part in found_tables(found))
    assert all(word in text for word in words)


def cells(part: str) -> list[list[str]]:
    """Of the tables of some HTML, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", part)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_members_are_told_as_the_terminal_tells_them() -> None:
    """By the lower of two middle ones, as torch's median."""
    members = [{"nll": value} for value in (4.0, 1.0, 3.0, 2.0)]
    whole, folded = found_tables({"ensemble": {"nll": 2.5}, "members": members})
    assert cells(whole)[1] == ["negative log-likelihood", "2.5", "2", "1", "4"]
    assert [row[1] for row in cells(folded)[1:]] == ["4", "1", "3", "2"]
    (sizes,) = found_tables({"by_size": members})
    assert [row[0] for row in cells(sizes)] == ["members", "1", "2", "3", "4"]


def test_a_run_that_diverged_is_said_to_have(tmp_path: Path) -> None:
    shutil.copytree(next(p for p in SAVED if p.name.endswith("interrupted")), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "non_finite_step_12.pt").write_bytes(b"")
    text = Read(page_of_run(read_story(tmp_path / "run", "run"))).text
    assert "diverged at step 12" in text and "not finished" not in text


def test_what_a_private_run_has_spent_is_told(commanded: Caller) -> None:
    small = ["trainer=private", "trainer.epsilon=3", "trainer.steps=3", "trainer.progress=false"]
    assert commanded("train", *small, "hydra.run.dir=run").code == 0
    text = Read(page_of_run(read_story(Path("run"), "run"))).text
    spent = json.loads(Path("run/results.json").read_text())["privacy"]
    assert shown("epsilon", spent["epsilon"]) in text and "no validation chose one" in text
    assert "best validation:" not in text


@pytest.mark.parametrize(
    "results",
    [
        {"loss": [{"inner_step": None, "mean": 1.0, "interval95": 0.1}]},
        {"loss": 10**400, "members": [10**400]},
        {"deep": json.loads("[" * 900 + "]" * 900)},
        {"ensemble": {"nll": "text"}, "members": [{"nll": 1.0}, {"nll": None}]},
        {"x" * 10**5: 1.0, "text": "y" * 10**6},
        {str(n): n for n in range(10**4)},
    ],
    ids=["no step", "large", "deep", "text", "long", "many"],
)
def test_results_of_any_form_have_a_page_of_bounded_size(
    results: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(next(p for p in SAVED if p.name.endswith("finished")), folder)
    path = folder / "results.json"
    known = json.loads(path.read_text()) | {"seconds": 10**400}
    path.write_text(json.dumps(known | {"test": {"test": results}}))
    (folder / "provenance.json").write_text("{" + '"a":{' * 900 + "}" * 900 + "}")
    page = page_of_run(read_story(folder, "run"))
    check_self_contained(page)
    assert len(page) < 3_000_000


def test_what_is_no_file_among_events_is_not_opened(tmp_path: Path) -> None:
    """To open a pipe would wait for ever."""
    shutil.copytree(SAVED[0], tmp_path / "run")
    (tmp_path / "run" / "tensorboard").mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "run" / "tensorboard" / "events.out.tfevents.1.x")
    story = read_story(tmp_path / "run", "run")
    assert not story.pictures and any("TensorBoard" in words for words in story.warnings)


def test_values_are_tamed() -> None:
    deep: Any = "end"
    for _ in range(40):
        deep = [deep]
    found = tamed({"a": 2**64, "b": -(2**63), "c": True, "d": math.nan, "e": deep, "f": "x" * 9999})
    assert found["a"] is None and found["b"] == -(2**63) and found["c"] is True
    assert "…" in json.dumps(found["e"], ensure_ascii=False) and len(found["f"]) == 2000


def copied(tmp_path: Path, *kinds: str) -> None:
    for number, kind in enumerate(kinds):
        source = next(p for p in SAVED if p.name.endswith("finished") and kind in p.name)
        shutil.copytree(source, tmp_path / "runs" / str(number))


def test_several_runs_have_the_table_of_compare_and_their_curves(
    commanded: Caller, tmp_path: Path
) -> None:
    for seed, rate in ((0, 0.01), (1, 0.01), (0, 0.02)):
        tuned = [*TINY, f"seed={seed}", f"maml.inner_lr={rate}"]
        assert commanded("train", *tuned, f"hydra.run.dir=runs/{rate}-{seed}").code == 0
    assert commanded("report", "runs").out.endswith("written: runs/report.html\n")
    page = Path("runs/report.html").read_text(encoding="utf-8")
    check_self_contained(page)
    read = Read(page)
    assert commanded("compare", "runs", "folder=table").code == 0
    lines = Path("table/compare.md").read_text(encoding="utf-8").splitlines()
    words = [cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")]
    cells = [word.replace("\\", "") for word in words if word.strip(" -:")]
    assert len(cells) > 10 and all(cell in read.text for cell in cells)
    assert [own["id"] for _, own in read.tags if own.get("id")] == ["row-1", "row-2"]
    charts = [i["alt"] or "" for i in read.named("img")]
    assert "loss after, validation of 2 rows over the steps" in charts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["run=[runs/0,runs/0]"], "Named more than once, and counted once: runs/0"),
        (["run=[runs/0,runs]"], "Named more than once"),
        (["run=[runs/0,empty]"], "Passed over: empty:"),
        (["run=[runs/0,runs/1]"], "Runs are of different kinds"),
    ],
    ids=str,
)
def test_what_is_odd_about_several_runs_is_said_on_their_page(
    settings: list[str], words: str, commanded: Caller, tmp_path: Path
) -> None:
    copied(tmp_path, "ensemble", "maml")
    (tmp_path / "empty").mkdir()
    assert commanded("report", *settings, "file=page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    check_self_contained(page)
    assert words in Read(page).text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["run=empty"], "run"),
        (["run=[]"], "run=[]"),
        (["run=[5]"], "run=[5]"),
        (["run=[empty,nowhere]"], "run='nowhere'"),
    ],
    ids=str,
)
def test_several_that_are_no_runs_are_one_sentence(
    settings: list[str], sentence: str, commanded: Caller
) -> None:
    Path("empty").mkdir()
    done = commanded("report", *settings)
    assert done.code == 2 and done.err.count("\n") == 1 and sentence in done.err
    assert list(Path().rglob("*")) == [Path("empty")]


def test_the_error_that_ends_a_run_is_in_its_log_and_on_its_page(commanded: Caller) -> None:
    ended = commanded("train", *TINY, "maml.inner_lr=1e9", "hydra.run.dir=run")
    assert ended.code == 1 and ended.err.count("error:") == 1
    sentence = ended.err.partition("error: ")[2].strip()
    assert Path("run/train.log").read_text().count(sentence) == 1
    assert commanded("report", "run=run").code == 0
    assert sentence in Read(Path("run/report.html").read_text(encoding="utf-8")).text


def test_an_attribution_is_on_the_page_of_its_run_and_damage_is_said(commanded: Caller) -> None:
    short = ["trainer=per_sample", "trainer.max_norm=inf", "model.hidden=[6]", "optimizer=sgd"]
    short += ["model.activation=gelu", "trainer.steps=4", "trainer.progress=false"]
    assert commanded("train", *short, "hydra.run.dir=run").code == 0
    asked = ["run=run", "targets=2", "methods=[tracin]", "self_methods=[]"]
    done = commanded("attribute", *asked)
    assert done.code == 0, done.err
    path = Path("run/attribution-test.json")
    found = json.loads(path.read_text())
    page = page_of_run(read_story(Path("run"), "run"))
    check_self_contained(page)
    text = Read(page).text
    for target in found["of_targets"]:
        for kind in ("most_helpful", "most_harmful"):
            first = target[kind]["tracin"][0]
            assert f"no. {first['example']} ({first['label']}) {shown('', first['score'])}" in text
    assert text.index("Attribution: test") < text.index("target") < text.index("Settings")
    path.write_text(json.dumps(found | {"methods": {HOSTILE: {"seconds": HOSTILE}}}))
    damaged = page_of_run(read_story(Path("run"), "run"))
    check_self_contained(damaged)
    assert "not as attribute writes them" in Read(damaged).text
