"""A few blows in every run of the tests, hundreds in the campaigns: `kills`, `rank_kills`,
`rank_refusals`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.saved_runs.make import RUNS

ROOT = Path(__file__).parents[2]


def _held(*arguments: str, module: str = "kills") -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.campaigns.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 runs went wrong" in done.stdout


def test_a_few_kills_of_two_trainers() -> None:
    _held("--kinds", "per_sample", "meta_members", "--blows", "4")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", RUNS)
def test_kills(kind: str) -> None:
    _held("--kinds", kind, "--blows", "15", "--seed", "1")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", RUNS)
def test_kills_of_processes_that_start_from_nothing(kind: str) -> None:
    _held("--kinds", kind, "--blows", "3", "--real")


@pytest.mark.campaign
@pytest.mark.parametrize("kind", RUNS)
def test_kills_of_one_of_two_ranks(kind: str) -> None:
    _held("--kinds", kind, "--blows", "5", module="rank_kills")


@pytest.mark.campaign
def test_refusals_of_ranks_that_were_not_started_alike() -> None:
    _held(module="rank_refusals")
