"""``python scripts/tour.py``, as a user runs it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from metalearn import cli
from metalearn.tour import chapters, scalar_engine

SCRIPT = Path(__file__).parents[2] / "scripts" / "tour.py"
TOUR = chapters(scalar_engine)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the script inside this process."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_whole_tour_prints_every_chapter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 0
    out = capsys.readouterr().out
    for number, chapter in enumerate(TOUR, start=1):
        assert f"━━ {number}  {chapter.title} ━" in out
        assert f"\n{number}.{len(chapter.stops)}  " in out
    assert f"{sum(len(c.stops) for c in TOUR)} stops, all of them equal" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    assert "✓ equal to 2e-16" in out and "✓ bit for bit" in out and "≠ differs by" in out
    assert "│ class Scalar:" in out  # the engine is shown whole
    assert "│     return grad(lambda w: w**2 * x)(w)" in out


def test_chapters_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "hessians", "gradients") == 0
    out = capsys.readouterr().out
    assert out.index("━━ 1  Gradients") < out.index("━━ 6  Hessians")
    assert "━━ 2" not in out and out.rstrip().splitlines()[-1].startswith("7 stops, all of them")


def test_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert [line.split()[1] for line in lines] == [chapter.name for chapter in TOUR]


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert "--list" in out and all(chapter.name in out for chapter in TOUR)


def test_an_unknown_chapter_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "gradient") == 2
    printed = capsys.readouterr()
    names = ", ".join(chapter.name for chapter in TOUR)
    meant = f"one of {names} is needed; did you mean gradients?"
    assert printed.err == f"error: chapter='gradient': {meant}\n"
    assert printed.out == ""


def test_a_disagreement_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong:
        Scalar, vmap = scalar_engine.Scalar, staticmethod(scalar_engine.vmap)

        @staticmethod
        def gradients(output, inputs):
            return [g + 1 for g in scalar_engine.gradients(output, inputs)]

    with pytest.raises(SystemExit) as ended:
        cli.take_tour(["engine"], engine=Wrong)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: A polynomial: ") and error.count("\n") == 1


def test_a_reader_who_leaves_early_sees_no_traceback(tmp_path: Path) -> None:
    # from another folder, without PYTHONPATH to the tests: the script finds its engine by itself
    root = SCRIPT.parents[1]
    command = f"{sys.executable} {SCRIPT} gradients | head -n 3"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "" and len(done.stdout.splitlines()) == 3
