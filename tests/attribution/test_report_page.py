"""The page that is mailed: self-contained, inert, of one target and of many."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from metalearn.attribution import TargetSamples, TrainingExamples, track_findings, write_page
from metalearn.attribution.gallery import Gallery
from metalearn.attribution.leaving_out import change_in_words
from metalearn.attribution.report_page import page_of
from metalearn.errors import SettingError
from metalearn.pages import picture_tag
from metalearn.tracking import NullTracker
from tests.support.found import found
from tests.support.html_pages import Read, check_self_contained


def test_the_page_begins_with_what_was_done_and_with_warnings() -> None:
    read = Read(page_of(found()))
    said = " ".join(read.text.split())
    assert "the network of run outputs/a run after step 40." in said
    assert (
        "Each of 20 training examples has a score for the loss of each of 3 targets of the" in said
    )
    assert "A positive score says that leaving the example out raises the loss" in said
    assert said.index("the run is not smooth") < said.index("Methods")
    order = (
        "Methods",
        "Targets, and",
        "Suspected label",
        "Can the scores",
        "Settings",
        "Provenance",
    )
    places = [said.index(heading) for heading in order]
    assert places == sorted(places)
    assert "subsets.count" in said
    assert "Warning" not in Read(page_of(found(warnings=[]))).text


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 90, 120), (2, 9, 9), (4,), (5, 3)])
@pytest.mark.parametrize("regression", [False, True])
def test_nothing_of_the_page_lies_elsewhere(shape: tuple[int, ...], regression: bool) -> None:
    page = page_of(found(shape=shape, regression=regression))
    read = Read(page)
    check_self_contained(page)
    pictures = [img for img in read.named("img") if "picture" in (img.get("class") or "")]
    assert bool(pictures) == (len(shape) == 3)
    assert ("bars" in {row.get("class") for row in read.named("table")}) == (len(shape) != 3)


def test_large_pictures_are_shrunk_and_small_ones_exact() -> None:
    def opened(picture: torch.Tensor) -> Image.Image:
        (img,) = Read(picture_tag(picture, "words")).named("img")
        content = base64.b64decode((img["src"] or "").partition(",")[2])
        return Image.open(io.BytesIO(content))

    small = torch.linspace(0, 1, 3 * 8 * 6).view(3, 8, 6)
    back = torch.from_numpy(np.asarray(opened(small)).copy()).permute(2, 0, 1)
    assert torch.equal(back, (255 * small).round().byte())
    large = opened(torch.rand(3, 200, 400, generator=torch.Generator().manual_seed(0)))
    assert large.size == (96, 48) and large.format == "JPEG"
    assert opened(torch.zeros(1, 200, 400)).format == "PNG"  # nothing is won


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\ud800$\\frac'


@pytest.mark.parametrize("shape", [(1, 8, 8), (4,)])
def test_texts_of_users_are_texts(shape: tuple[int, ...], tmp_path: Path) -> None:
    names = {HOSTILE: torch.randn(3, 20, generator=torch.Generator().manual_seed(0))}
    selves = {HOSTILE + "2": torch.rand(20, generator=torch.Generator().manual_seed(1))}
    findings = found(
        shape=shape,
        scores=names,
        self_scores=selves,
        seconds={HOSTILE: 1.0},
        class_names=[HOSTILE] * 3,
        retrained=[],
        run=HOSTILE,
        state=HOSTILE,
        split=HOSTILE,
        warnings=[HOSTILE],
        settings={HOSTILE: HOSTILE, "list": [HOSTILE]},
        provenance={HOSTILE: {HOSTILE: None}},
    )
    write_page(tmp_path / "page.html", findings)
    read = Read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not read.named("script")
    assert all((img["src"] or "").startswith("data:") for img in read.named("img"))
    assert not any("onerror" in attributes for _, attributes in read.tags)
    assert "<script>alert(1)</script>" in read.text  # as words


def test_of_many_targets_those_of_the_highest_losses_are_shown() -> None:
    findings = found(100)
    read = Read(page_of(findings, most_targets=4, top=2))
    assert "4 of 100 are shown, those with the highest losses" in read.text
    shown = re.findall(r"test no\. (\d+)", read.text)
    worst = findings.targets.losses.argsort(descending=True)[:4].sort().values
    assert [int(row) for row in shown] == (10 + worst).tolist()
    cells = read.named("figure")
    assert len(cells) == 4 * 2 * 2 * 2 + 4  # methods, both kinds, two each; and the suspects


def test_one_target_is_not_counted() -> None:
    text = Read(page_of(found(1))).text
    assert "are shown" not in text
    assert "each of 1 target of" in text


def test_a_page_of_one_kind_of_scores_alone() -> None:
    alone: dict[str, Any] = {"retrained": [], "curvature": None, "walk_norms": None}
    alone["leave_k_out"] = None
    selves = Read(page_of(found(scores={}, **alone)))
    assert "Targets, and" not in selves.text and "Suspected" in selves.text
    scores = Read(page_of(found(self_scores={}, **alone)))
    assert "Suspected" not in scores.text and "Can the scores" not in scores.text
    bad = {"exact": torch.full((3, 20), torch.nan)}
    assert "None." in Read(page_of(found(scores=bad, **alone))).text


def test_what_goes_without_the_most_helpful_examples_is_told() -> None:
    read = Read(page_of(found()))
    left = found().leave_k_out
    assert left is not None and "Trained anew without the most helpful examples" in read.text
    assert "1 example: loss" in read.text and "4 examples: loss" in read.text
    share = f"{100 * float(left.flips['exact'].share[0]):.0f} %"
    words = change_in_words(left.change("exact", 0))
    assert f"exact{words}{share}" in read.text.replace("\n", "") and " ± " in words
    numbers = Read(page_of(found(regression=True)))
    assert "1 example: loss" in numbers.text and "flipped" not in numbers.text
    assert "Trained anew" not in Read(page_of(found(leave_k_out=None))).text


def test_the_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(path, found())
    before = path.read_bytes()

    def broken(findings: object, **settings: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("metalearn.attribution.report_page.page_of", broken)
    with pytest.raises(KeyboardInterrupt):
        write_page(path, found(1))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["top", "most_targets"])
def test_counts_below_one_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"{name}=0: a whole number of at least 1"):
        write_page(tmp_path / "page.html", found(), **{name: 0})


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (torch.tensor([0, 51, 255]).byte(), [0.0, 0.2, 1.0]),
        (torch.tensor([0.0, 0.25, 0.5]), [0.0, 0.25, 0.5]),
        (torch.tensor([-1.0, 0.0, 3.0]), [0.0, 0.25, 1.0]),
        (torch.tensor([-1.0, torch.nan, 3.0]), [0.0, 0.0, 1.0]),
        (torch.tensor([7.0, 7.0, 7.0]), [0.0, 0.0, 0.0]),
    ],
)
def test_pictures_are_brought_to_one_range(values: torch.Tensor, wanted: list[float]) -> None:
    pictures = values.view(3, 1, 1, 1).expand(3, 1, 2, 2)
    classes = torch.arange(3)
    findings = found(
        targets=3,
        examples=TrainingExamples(torch.arange(20) % 3, pictures[torch.arange(20) % 3]),
        self_scores={},
    )
    targets = TargetSamples(classes, torch.ones(3), classes, pictures)
    changed = {**vars(findings), "targets": targets}
    gallery = Gallery(type(findings)(**changed), top=1, most_targets=3)
    shown = [gallery.target_picture(row) for row in range(3)]
    assert [float(one[0, 0, 0]) for one in shown if one is not None] == pytest.approx(wanted)


def test_another_class_is_wrong_whatever_both_are_called() -> None:
    classes = torch.arange(3)
    predicted = torch.eye(3)[[0, 2, 2]]
    samples = TargetSamples(classes, torch.ones(3), classes, None, predicted)
    findings = replace(found(class_names=("ant",) * 3), targets=samples)
    gallery = Gallery(findings, top=1, most_targets=3)
    assert [gallery.is_wrong(row) for row in range(3)] == [False, True, False]


class Kept(NullTracker):
    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.flushed = False

    def figure(self, step: int, name: str, figure: Figure) -> None:
        assert step == 40
        self.figures[name] = figure

    def flush(self) -> None:
        self.flushed = True


def test_a_tracker_gets_every_figure() -> None:
    tracker = Kept()
    track_findings(tracker, found(5), step=40, most_targets=2)
    assert tracker.flushed
    names = sorted(tracker.figures)
    targets = [name for name in names if name.startswith("attribution/target_")]
    assert len(targets) == 2
    others = {"leave_k_out", "self_scores", "smoothness", "suspects_el2n"}
    assert others < {name.removeprefix("attribution/") for name in names}
    assert sum(name.startswith("attribution/retrained_without_") for name in names) == 1
    with pytest.raises(SettingError, match="step=-1"):
        track_findings(tracker, found(), step=-1)


def test_figures_of_a_page_are_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    from metalearn.attribution import report_page

    made: list[Figure] = []

    def kept(findings: Any, *, top: int) -> dict[str, Figure]:
        figures = report_page_figures(findings, top=top)
        made.extend(figures.values())
        return figures

    report_page_figures = report_page.score_figures
    monkeypatch.setattr(report_page, "score_figures", kept)
    page_of(found())
    assert len(made) == 4
    assert not any(figure.axes for figure in made)
