"""What a comparison makes of damaged runs: they are passed over, in a sentence, or shown."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metalearn.cli.comparison.comparing import compared
from metalearn.cli.comparison.files import write_comparison
from metalearn.cli.comparison.finding import find_runs
from metalearn.cli.comparison.tables import comparison_lines
from metalearn.cli.run_config import saved_config
from tests.damaged.test_checkpoints import RUNS, SAVED, contents
from tests.damaged.test_configs import damaged
from tests.saved_runs.double import copy_of
from tests.support.commands import Outcome
from tests.support.damage import CONFIGS, REPLACEMENTS, deep, entries, replaced, without

WHOLE = SAVED / "v7" / "meta_private-finished"
RESULTS: dict[str, bytes] = {
    "empty": b"",
    "a word": b"hello",
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "half": (WHOLE / "results.json").read_bytes()[:200],
    "binary": bytes(range(256)),
    "latin": b'{"steps": 3, "headline": {"caf\xe9": 1}}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "long numbers": b'{"steps": ' + b"7" * 5000 + b"}",
    "no steps": b"{}",
    "text for a number": b'{"steps": 3, "headline": {"test/loss": "0.5"}}',
    "true for a number": b'{"steps": 3, "headline": {"test/loss": true}}',
    "a vast number": b'{"steps": 3, "headline": {"test/loss": 1' + b"0" * 400 + b"}}",
    "a list of numbers": b'{"steps": 3, "headline": [1, 2]}',
    "many numbers": json.dumps(
        {"steps": 3, "headline": {f"test/{n}": 0.5 for n in range(5000)}}
    ).encode(),
    "tests that are none": b'{"steps": 3, "test": [1]}',
}


def check(folder: Path, other: Path) -> str | None:
    """Compare a run with another one; the reason for which it was passed over."""
    before = contents(folder)
    found = find_runs([folder, other])
    comparison = compared(found.runs, found.passed_over)
    lines = comparison_lines(comparison, 100)
    assert all("\n" not in line and "\x1b" not in line for line in lines)
    assert contents(folder) == before
    assert len(found.runs) + len(found.passed_over) == 2 and str(other) not in found.passed_over
    reason = found.passed_over.get(str(folder))
    if reason is not None:
        assert len(reason) < 300 and any(reason in line for line in lines), reason
    return reason


@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_configuration(name: str, tmp_path: Path) -> None:
    """Nothing that it names is built, so that only what cannot be read is passed over."""
    reason = check(damaged(name, tmp_path / "run"), WHOLE)
    assert reason is None or reason.startswith("config.yaml: "), reason


@pytest.mark.parametrize("name", RESULTS)
def test_damaged_results(name: str, tmp_path: Path) -> None:
    folder = copy_of(WHOLE, tmp_path / "run")
    (folder / "results.json").write_bytes(RESULTS[name])
    reason = check(folder, SAVED / "v1" / "ensemble-finished")
    assert reason is not None and reason.startswith("results.json: these are no results of a run")


def test_every_entry_of_results_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is passed over, or has numbers that can be shown."""
    folder = copy_of(WHOLE, tmp_path / "run")
    whole = json.loads((WHOLE / "results.json").read_text())
    values = [v for k, v in REPLACEMENTS.items() if k not in ("deep",) and not hasattr(v, "shape")]
    values += [deep(5), 1e308, -math.inf]
    config, texts = saved_config(folder), set()
    monkeypatch.setattr("metalearn.cli.comparison.runs.saved_config", lambda *_, **__: config)
    for path in entries(whole):
        texts |= {json.dumps(replaced(whole, path, value)) for value in values}
        texts.add(json.dumps(without(whole, path)))
    reasons = []
    for text in sorted(texts):
        (folder / "results.json").write_text(text)
        found = find_runs([folder])
        lines = comparison_lines(compared(found.runs, found.passed_over), 100)
        reasons.append(found.passed_over.get(str(folder)))
        assert reasons[-1] is None or any(reasons[-1] in line for line in lines)
    assert any(reasons) and not all(reasons)


@pytest.mark.parametrize("what", ["pipe", "folder", "huge", "loop", "dangling"])
def test_results_that_are_no_file(what: str, tmp_path: Path) -> None:
    folder = copy_of(WHOLE, tmp_path / "run")
    path = folder / "results.json"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "huge":
        with path.open("wb") as file:
            file.truncate(2**27)  # takes no place on the disk
    else:
        path.symlink_to(path.name if what == "loop" else "nowhere")
    found = find_runs([folder, SAVED / "v1" / "ensemble-finished"])
    assert found.passed_over[str(folder)].startswith("results.json: these are no results")


def test_records_of_an_unfinished_run_may_be_anything(tmp_path: Path) -> None:
    folder = copy_of(RUNS["meta_sinusoid"], tmp_path / "run")
    records = folder / "metrics.jsonl"
    for content in (b"", b"\xff\xfe", b"[]\n3\nnull\n", b'{"step": -1}\n{"step": "x"}\n{"st'):
        records.write_bytes(content)
        (found,) = find_runs([folder]).runs
        assert found.state == "not finished: no step recorded"
    records.write_bytes(b'{"step": 7}\n{"step": 9, "ti')
    assert find_runs([folder]).runs[0].state == "not finished: step 7 of 40"


@pytest.mark.parametrize("origin", [b"", b"[]", b'{"git": null}', b'{"git": {"revision": 3}}'])
def test_a_damaged_origin_is_no_origin(origin: bytes, tmp_path: Path) -> None:
    folder = copy_of(WHOLE, tmp_path / "run")
    (folder / "provenance.json").write_bytes(origin)
    assert find_runs([folder]).runs[0].code is None


HOSTILE = "\x1b[31m$\\frac{x}|`<b>\u202e\n" + "y" * 500


def test_names_and_values_command_no_terminal(tmp_path: Path) -> None:
    for number in range(2):
        folder = copy_of(WHOLE, tmp_path / f"run{number}")
        path = folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config |= {"init_from": f"{number}{HOSTILE}", "extra": {HOSTILE: [number, HOSTILE]}}
        path.write_text(yaml.safe_dump(config))
        results = json.loads((WHOLE / "results.json").read_text())
        results["headline"][f"test/{HOSTILE}"] = 0.5
        (folder / "results.json").write_text(json.dumps(results))
    found = find_runs([tmp_path])
    comparison = compared(found.runs, found.passed_over)
    assert len(comparison.rows) == 2
    lines = comparison_lines(comparison, 80)
    assert not any(ord(char) < 32 for line in lines for char in line)
    write_comparison(tmp_path, "compare", comparison)
    assert "\x1b" not in (tmp_path / "compare.md").read_text()
    assert (tmp_path / "compare.png").stat().st_size


def test_commands_say_so(tmp_path: Path, run: Callable[..., Outcome]) -> None:
    broken: Any = damaged("no yaml", tmp_path / "broken")
    outcome = run("compare", str(broken), "folder=out")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "at least one run is needed" in outcome.err and "config.yaml" in outcome.err
    assert not (tmp_path / "out").exists()
    copy_of(WHOLE, tmp_path / "whole")
    outcome = run("compare", str(broken), "whole", "folder=out")
    assert outcome.code == 0 and f"Passed over: {broken}: config.yaml" in outcome.out
    passed = json.loads((tmp_path / "out" / "compare.json").read_text())["passed_over"]
    assert list(passed) == [str(broken)]
