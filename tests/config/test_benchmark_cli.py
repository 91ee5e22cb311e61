"""The benchmark script: what it leaves behind, what it says of bad settings."""

import json
from pathlib import Path

import pytest

from tests.support.commands import call


def test_a_race_leaves_table_figure_and_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["workloads=[sinusoid]", "rounds=1", "memory=false", "curve=[]"]
    small += ["contestants=[vmap,implicit]"]  # which is after another gradient, and not raced
    done = call("benchmark", *small, "hydra.run.dir=out", monkeypatch=monkeypatch, capsys=capsys)
    assert done.code == 0 and "| reverse, vmap |" in done.out
    assert {p.name for p in Path("out").iterdir()} == {
        "meta_gradient.md",
        "race.png",
        "results.json",
    }
    report = json.loads(Path("out/results.json").read_text())
    (timing,) = report["meta_gradient"]["sinusoid"]
    assert timing["contestant"] == "vmap" and timing["milliseconds"] > 0


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("suites=[all]", "suites: all"),
        ("workloads=[W9]", "workloads: W9"),
        ("contestants=[nobody]", "contestants: nobody"),
        ("rounds=0", "rounds: 0"),
        ("curve=[0]", "curve: 0"),
        ("parallel_metalearn=nowhere", "parallel_metalearn: nowhere"),
    ],
)
def test_bad_settings_end_in_one_sentence(
    setting: str, sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARALLEL_METALEARN", "")
    done = call("benchmark", setting, "hydra.run.dir=out", monkeypatch=monkeypatch, capsys=capsys)
    assert done.code == 2 and sentence in done.err.replace("=", ": ").replace("'", "")
    assert not Path("out").exists()
