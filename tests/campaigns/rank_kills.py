"""Trainings of several ranks that lose one at a random moment: ``… tests.campaigns.rank_kills``.

Each kind of training is done once undisturbed by R ranks, and then under blows: a random rank is
killed, gets a signal that asks it to stop, or hangs (SIGSTOP) at a random moment of the clock or,
the first rank, of its touches of the run's files. All ranks have to end within a stated time, the
others with a sentence that names the one that is lost, and the same command with ``resume=auto``
has to come to what the undisturbed training came to, to the last bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import metalearn.ranks  # before the forks
from tests.campaigns.kills import Blow, ends, script
from tests.saved_runs.double import draw_pictures
from tests.saved_runs.make import RUNS, with_pictures
from tests.support.builders import assert_same
from tests.support.unrendered import without_pixels

TIMEOUT = 3.0
"""Seconds that ranks wait for one that hangs."""
GENTLE = (signal.SIGTERM, signal.SIGINT)  # SIGHUP may be ignored, as under nohup
LIMIT = 25.0
"""Seconds in which all have to have ended after one is lost."""


class Ranks:
    """R forks of this process that share a training."""

    def __init__(self, arguments: list[str], log: Path, count: int) -> None:
        self.log = log
        # as torchrun keeps one
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.children = [self._fork(rank, count, arguments) for rank in range(count)]
        self.codes: dict[int, int] = {}

    def _fork(self, rank: int, count: int, arguments: list[str]) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True", "METALEARN_RANK_TIMEOUT": str(TIMEOUT),
            }  # fmt: skip
            without_pixels(pytest.MonkeyPatch())
            code = script(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def strike(self, rank: int, number: int) -> None:
        if self._ended(rank) is None:
            os.kill(self.children[rank], number)

    def _ended(self, rank: int) -> int | None:
        if rank not in self.codes:
            pid, status = os.waitpid(self.children[rank], os.WNOHANG)
            if pid:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
        return self.codes.get(rank)

    def wait(self, ranks: list[int], seconds: float) -> bool:
        """Whether they end in that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if None not in [self._ended(rank) for rank in ranks]:
                return True
            time.sleep(0.02)
        return False

    def clear(self) -> None:
        for rank in range(len(self.children)):
            self.strike(rank, signal.SIGKILL)
        assert self.wait(list(range(len(self.children))), 10)


class Campaign:
    """Blows on one kind of training by R ranks.

    Args:
        name: of `tests.saved_runs.make.RUNS`.
        scratch: where runs are made.
        ranks: R.
        seed: of the blows.
    """

    def __init__(self, name: str, scratch: Path, *, ranks: int, seed: int) -> None:
        self.name, self.scratch, self.count = name, scratch, ranks
        self.random = random.Random(f"{seed} {name} {ranks}")
        self.fallen = {"killed": 0, "stopped": 0, "hung": 0, "too late": 0}
        pictures = scratch / "pictures"
        if not pictures.exists():
            draw_pictures(pictures)
        self.arguments = [*with_pictures(RUNS[name], pictures), "deterministic=true"]
        self.log = scratch / f"{name}-whole.log"
        whole, started = scratch / f"{name}-whole", time.monotonic()
        undisturbed = Ranks([*self.arguments, f"hydra.run.dir={whole}"], self.log, ranks)
        everyone = list(range(ranks))
        assert undisturbed.wait(everyone, 300), self.log.read_text()
        self.refused = set(undisturbed.codes.values()) == {2}
        if not self.refused:
            assert set(undisturbed.codes.values()) == {0}, self.log.read_text()
            self.seconds, self.wanted = time.monotonic() - started, _ends(whole)

    def run(self, index: int) -> str:
        """One training under one to three blows; what was wrong in the end."""
        folder = self.scratch / f"{self.name}-{index}"
        self.log = self.scratch / f"{self.name}-{index}.log"
        where = [*self.arguments, f"hydra.run.dir={folder}", "resume=auto"]
        for _ in range(self.random.randint(1, 3)):
            problem, over = self._under_a_blow(Ranks(where, self.log, self.count))
            if problem:
                return f"{problem}\n{self.log.read_text()[-3000:]}"
            if over:
                break
        last = Ranks(where, self.log, self.count)
        if not last.wait(list(range(self.count)), 300) or set(last.codes.values()) != {0}:
            last.clear()
            return f"the last attempt: {last.codes}\n{self.log.read_text()[-3000:]}"
        try:
            assert_same(_ends(folder), self.wanted, self.name)
        except AssertionError as error:
            return str(error)
        return ""

    def _under_a_blow(self, ranks: Ranks) -> tuple[str, bool]:
        """What was wrong, and whether the training was over before."""
        struck = self.random.randrange(self.count)
        number = self.random.choices([signal.SIGKILL, signal.SIGSTOP, *GENTLE], [6, 2, 1, 1])[0]
        blow = Blow(number, seconds=self.random.uniform(0.0, self.seconds))
        time.sleep(blow.seconds or 0.0)
        before = self.log.stat().st_size if self.log.exists() else 0
        ranks.strike(struck, number)
        others = [rank for rank in range(self.count) if rank != struck]
        ending = others if number == signal.SIGSTOP else list(range(self.count))
        try:
            if not ranks.wait(ending, LIMIT):
                return f"{blow} to rank {struck}: some went on, {ranks.codes}", False
        finally:
            ranks.clear()
        codes = [ranks.codes[rank] for rank in others]
        if set(codes) == {0}:
            self.fallen["too late"] += 1
            return "", True
        kinds = {signal.SIGKILL: "killed", signal.SIGSTOP: "hung"}
        self.fallen[kinds.get(signal.Signals(number), "stopped")] += 1
        said = self.log.read_text()[before:]
        if number in GENTLE:
            # asked while it trains all stop; before that it is as if it were killed
            fine = {*codes, ranks.codes[struck]} <= {1, 128 + number, -number}
            return ("" if fine else f"{blow} to rank {struck}: {ranks.codes}\n{said}"), False
        named = any(
            f"rank {struck} {words}" in said for words in ("is gone", "hangs", "never came")
        )
        if set(codes) != {1} or not named:
            return f"{blow} to rank {struck}: {ranks.codes}\n{said}", False
        return "", False


def _ends(folder: Path) -> dict[str, Any]:
    """All that a run has come to; of a private one, in which steps taken anew count, the weights.

    Of one whose noise cannot be drawn again, nothing.
    """
    found = ends(folder)
    if "privacy" not in found["results"]:
        return found
    if found["results"]["privacy"]["noise"] == "secure":
        return {}
    return {name: found[name]["module"] for name in ("last", "best")}


def main(arguments: list[str] | None = None) -> int:
    """Strike until each kind of training has had its blows; 1 if a run did not go on rightly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blows", type=int, default=5, help="on each kind of training, at least")
    parser.add_argument("--kinds", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong, total = 0, {"killed": 0, "stopped": 0, "hung": 0, "too late": 0}
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.kinds:
            campaign = Campaign(kind, Path(scratch), ranks=options.ranks, seed=options.seed)
            if campaign.refused:
                print(f"{kind}: one process takes it alone", flush=True)
                continue
            index = 0
            while sum(campaign.fallen.values()) < options.blows:
                problem = campaign.run(index)
                index += 1
                if problem:
                    wrong += 1
                    print(f"{kind}: {problem}", flush=True)
            print(f"{kind}: {campaign.fallen} on {index} runs", flush=True)
            total = {name: count + campaign.fallen[name] for name, count in total.items()}
    print(f"{total}: {wrong} runs went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    assert metalearn.ranks
    sys.exit(main())
