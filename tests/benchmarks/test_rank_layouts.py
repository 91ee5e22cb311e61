"""By how many ranks a training is shared best: layouts, ratios, the sentence and refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from metalearn.benchmarks.rank_layouts import LayoutTiming, layouts_of, time_layouts
from metalearn.benchmarks.shared_steps import QUIET, step_times, turn
from metalearn.cli.timed_run import take_part
from metalearn.errors import RankError, SettingError
from metalearn.models import MLP
from metalearn.ranks import OneRank
from metalearn.tasks import SinusoidTasks
from metalearn.trainers import MAML, MetaTrainer
from tests.support.commands import call

PRINTED = """
import json, os
ranks, threads = int(os.environ["WORLD_SIZE"]), int(os.environ["OMP_NUM_THREADS"])
refused = {"setting": "trainer.members", "value": "3", "accepted": "more are needed"}
numbers = {"step": (8.0 if ranks == 1 else 6.0) / threads}
print(json.dumps(refused if ranks > MOST else numbers))
"""


@pytest.mark.parametrize("processors", [1, 2, 3, 6, 16])
def test_layouts_share_the_processors_and_take_no_more(processors: int) -> None:
    alone, *shared = layouts_of(processors)
    assert alone == (1, processors)
    assert [ranks for ranks, _ in shared] == [2**n for n in range(1, 9) if 2**n <= processors]
    assert all(processors - ranks < ranks * threads <= processors for ranks, threads in shared)


@pytest.mark.parametrize(
    ("ratio", "best"), [(1.3, (1, 2)), (0.97, (1, 2)), (0.94, (2, 1)), (0.5, (2, 1))]
)
def test_ranks_are_told_where_they_are_faster_by_more_than_noise(
    ratio: float, best: tuple[int, int]
) -> None:
    timing = LayoutTiming({(1, 2): 10.0, (2, 1): 10 * ratio}, {(1, 2): 1.0, (2, 1): ratio}, {})
    assert timing.best == best
    assert ("torchrun --standalone --nproc-per-node=2" in timing.sentence()) == (best == (2, 1))


def test_times_are_medians_of_what_the_first_rank_of_each_layout_prints() -> None:
    timing = time_layouts(f"MOST = 9\n{PRINTED}", rounds=2, processors=4)
    assert timing.ratios == {(1, 4): 1.0, (2, 2): 1.5, (4, 1): 3.0}
    assert timing.milliseconds == {(1, 4): 2e3, (2, 2): 3e3, (4, 1): 6e3}


def test_what_so_many_ranks_cannot_share_is_said_in_the_table() -> None:
    timing = time_layouts(f"MOST = 2\n{PRINTED}", rounds=2, processors=4)
    assert set(timing.ratios) == {(1, 4), (2, 2)} and set(timing.refused) == {(4, 1)}
    assert "| 4 | 1 | trainer.members='3': more are needed |" in timing.table()
    assert timing.best == (1, 4)


def test_what_one_process_cannot_take_is_refused() -> None:
    with pytest.raises(SettingError, match="more are needed"):
        time_layouts(f"MOST = 0\n{PRINTED}", rounds=1, processors=2)


def test_processes_that_end_without_numbers_are_an_error() -> None:
    with pytest.raises(RankError, match="rank 0 ended before"):
        time_layouts("pass", rounds=1, processors=1)
    with pytest.raises(RankError, match="rank 1 of 2 ended before"):
        turn(f"MOST = 2\n{PRINTED}\nif os.environ['RANK'] == '1': raise SystemExit('boom')", 2, 1)


def test_what_a_network_prints_is_no_number() -> None:
    (found,) = turn(f"print('a word of its own')\nMOST = 2\n{PRINTED}", 1, 2)
    assert found == {"step": 4.0}


@pytest.mark.parametrize(
    ("limits", "taken"), [({}, 9), ({"most": 4}, 4), ({"seconds": 0.0}, 3)], ids=str
)
def test_steps_are_timed_up_to_the_first_limit(limits: dict[str, float], taken: int) -> None:
    maml = MAML(inner_lr=0.01)
    model, tasks = MLP((1,), 1, hidden=(4,)), SinusoidTasks(shot=5)
    trainer = MetaTrainer(model, tasks, maml=maml, steps=9, meta_batch=2, **QUIET)
    found = step_times(trainer, OneRank(), **limits)  # type: ignore[arg-type]
    assert found["steps"] == taken and found["step"] > 0 and found["meeting"] == 0


def test_the_training_of_a_run_is_timed_without_touching_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["trainer=ensemble", "trainer.members=2", "trainer.steps=5", "test_tasks=0"]
    assert not call(
        "train", *small, "hydra.run.dir=run", monkeypatch=monkeypatch, capsys=capsys
    ).code
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    level = logging.root.manager.disable
    take_part("run", False, 4)
    assert logging.root.manager.disable == level
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4 and found["step"] > 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["suites=[ranks]", "run=nowhere"], "run='nowhere'"),
        (["run=nowhere"], "run='nowhere': suites=[ranks] is needed"),
        (["suites=[ranks]", "trust=true"], "trust=True: run=<folder> is needed"),
        (["suites=[ranks]", "run=nowhere", "threads=2"], "threads=2: null is needed"),
        (["suites=[ranks]", "run=nowhere", "trust=5"], "trust=5: true or false"),
    ],
    ids=str,
)
def test_a_run_is_asked_for_rightly(
    settings: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = call("benchmark", *settings, monkeypatch=monkeypatch, capsys=capsys)
    assert done.code == 2 and sentence in done.err
