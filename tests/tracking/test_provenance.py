"""Provenance and atomic JSON."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from metalearn.tracking import provenance, write_json
from metalearn.tracking.provenance import _git, replace_file


def _commit(folder: Path) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    package = tmp_path / "metalearn"
    package.mkdir()
    (package / "code.py").write_text("x = 1\n")
    _commit(tmp_path)
    return package


def test_provenance_says_what_it_promises_and_no_host_name() -> None:
    record = provenance()
    text = json.dumps(record, allow_nan=False)
    assert set(record) == {"git", "versions", "platform", "cpu", "devices", "time", "command"}
    assert record["command"] == sys.argv
    versions = record["versions"]
    assert isinstance(versions, dict)
    assert versions["python"] == platform.python_version()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(versions) == {"python", "metalearn", "torch", "torchvision", "numpy"}
    cpu = record["cpu"]
    assert isinstance(cpu, dict)
    assert cpu["threads"] == torch.get_num_threads()
    assert datetime.fromisoformat(str(record["time"])).utcoffset() is not None
    host = platform.node()
    assert len(host) < 5 or host not in text


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules["metalearn.tracking.provenance"]._DISTRIBUTIONS, "metalearn", "no-such-package"
    )
    assert provenance()["versions"]["metalearn"] is None  # type: ignore[index]


def test_git_revision_and_dirty_flag(checkout: Path) -> None:
    clean = _git(checkout)
    assert clean is not None
    assert len(str(clean["revision"])) == 40
    assert clean["dirty"] is False
    (checkout / "code.py").write_text("x = 2\n")
    assert _git(checkout) == {"revision": clean["revision"], "dirty": True}


def test_somebody_elses_repository_does_not_count(checkout: Path) -> None:
    installed = checkout.parent / "venv" / "metalearn"
    installed.mkdir(parents=True)
    assert _git(installed) is None


def test_no_git_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _git(checkout) is None


def test_write_json_makes_plain_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(
        path,
        {
            "loss": math.nan,
            "bounds": (-math.inf, 1.5),
            "tensor": torch.tensor([1.0, math.inf]),
            "array": np.arange(2),
            "number": np.float32(0.5),
            "folder": Path("a/b"),
            "name": "Ωmniglot",
            3: True,
        },
    )
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n  "loss": null,')
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "loss": None,
        "bounds": [None, 1.5],
        "tensor": [1.0, None],
        "array": [0, 1],
        "number": 0.5,
        "folder": "a/b",
        "name": "Ωmniglot",
        "3": True,
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})

    def half(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_replacing_keeps_the_files_mode(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, 1)
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o640)
    write_json(path, 2)
    assert path.stat().st_mode & 0o777 == 0o640
