"""How processes that ``torchrun`` has started become ranks.

Axes: R ranks.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from metalearn.errors import RankError, SettingError
from metalearn.ranks.processes import ProcessRanks
from metalearn.ranks.protocol import OneRank, Ranks
from metalearn.ranks.watch import Watch

__all__ = ["Launch", "joined", "launched", "refused"]

log = logging.getLogger(__name__)

_TELLING = 10.0
"""Seconds that a rank which is refused by itself looks for the place where ranks meet."""
_REMEMBERED = 1000
"""Warnings, so that those of all ranks are said once."""


@dataclass(frozen=True)
class Launch:
    """Where a process stands among those that were started together."""

    rank: int
    count: int
    """R."""
    local_rank: int
    """Among those of its machine."""
    address: str
    port: int
    """Of the store by which they find each other."""
    restart: int = 0
    """How often all have been started anew."""
    store_is_kept: bool = False
    """Whether somebody who is no rank keeps it."""
    local_count: int = 1
    """Ranks of its machine."""


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """What ``torchrun`` says in the environment; None for a process by itself.

    Raises:
        SettingError: a variable that is missing or no number.
    """
    known = os.environ if environment is None else environment
    if known.get("WORLD_SIZE") in (None, ""):
        return None
    if known["WORLD_SIZE"] == "1" and known.get("RANK", "0") in ("", "0"):
        return None

    def number(name: str, default: str | None = None) -> int:
        value = known.get(name, default)
        if value is None or not value.isdecimal():
            accepted = "a whole number is needed in the environment, as torchrun has it"
            raise SettingError(name, value, accepted)
        return int(value)

    rank, count = number("RANK"), number("WORLD_SIZE")
    if not rank < count:
        raise SettingError("RANK", rank, f"a number below WORLD_SIZE={count} is needed")
    return Launch(
        rank,
        count,
        number("LOCAL_RANK", str(rank)),
        known.get("MASTER_ADDR", "127.0.0.1"),
        number("MASTER_PORT"),
        number("TORCHELASTIC_RESTART_COUNT", "0"),
        known.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        number("LOCAL_WORLD_SIZE", "1"),
    )


@contextmanager
def joined(timeout: float = 300.0, launch: Launch | None = None) -> Iterator[Ranks]:
    """A block in which the processes of ``torchrun`` are ranks; a process by itself is the one.

    What other ranks than the first have to say, warnings and errors of ``logging``, comes to the
    log of the first. An error that ends a rank is known to the others before it goes.

    Args:
        timeout: seconds that ranks wait for each other before they give up.
        launch: by default what `launched` finds.

    Raises:
        SettingError: a rank was started for another number of ranks.
        RankError: not all came; or, in the block, a rank was lost.
    """
    launch = launch or launched()
    if launch is None:
        yield OneRank()
        return
    store = _store(launch, timeout, hosts=launch.rank == 0 and not launch.store_is_kept)
    own = _Own()
    watch = _watch(launch, timeout, own)
    handler = _Reporter(watch) if launch.rank else own
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        limit = timedelta(seconds=timeout)
        watch.begin({"version of torch": torch.__version__})
        prefix = PrefixStore(f"group/{launch.restart}", store)
        try:
            dist.init_process_group(
                backend, store=prefix, rank=launch.rank, world_size=launch.count, timeout=limit
            )
        except RuntimeError as error:
            missing = watch.who_is_missing() or f"not all of {launch.count} ranks came"
            raise RankError(missing) from error
        logging.getLogger("metalearn").addHandler(handler)
        yield ProcessRanks(watch=watch)
    except BaseException as error:
        watch.leave(_reason(error))
        if launch.rank == 0 and not launch.store_is_kept:
            watch.wait_for_others()
        raise
    else:
        watch.leave()
    finally:
        logging.getLogger("metalearn").removeHandler(handler)
        if dist.is_initialized():
            dist.destroy_process_group()


def refused(error: Exception) -> NoReturn:
    """Let other ranks, which might wait, know what ends this one before it joins them; raise that.

    Raises:
        Exception: the one that is given.
    """
    launch = launched()
    if launch is not None and (launch.rank or launch.store_is_kept):
        with suppress(RankError, RuntimeError):
            store = PrefixStore(f"watch/{launch.restart}", _store(launch, _TELLING))
            store.set(f"left/{launch.rank}", json.dumps(_reason(error)))
    raise error


def _store(launch: Launch, timeout: float, *, hosts: bool = False) -> TCPStore:
    """A client of the store by which ranks find each other.

    Raises:
        RankError: nobody answers there.
    """
    limit = timedelta(seconds=timeout)
    try:
        return TCPStore(
            launch.address, launch.port, is_master=hosts, timeout=limit, wait_for_workers=False
        )
    except RuntimeError as error:
        where = f"{launch.address}:{launch.port}"
        doing = "be opened" if hosts else "be reached"
        raise RankError(f"the place where ranks meet, {where}, cannot {doing}") from error


def _watch(launch: Launch, timeout: float, own: _Own) -> Watch:
    store = PrefixStore(f"watch/{launch.restart}", _store(launch, timeout))
    return Watch(store, launch.rank, launch.count, timeout, None if launch.rank else own.heard)


def _reason(error: BaseException) -> str:
    """What ended a rank, in a line; empty where another rank or a signal did."""
    if isinstance(error, SystemExit):
        if not error.code or (isinstance(error.code, int) and error.code > 128):
            return ""
        error = error.__context__ or error  # which a command has answered with a sentence
    if isinstance(error, RankError):
        return ""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


class _Own(logging.Handler):
    """Remembers what the first rank has warned of by itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: deque[str] = deque(maxlen=_REMEMBERED)

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())

    def heard(self, rank: int, words: str) -> None:
        """Another rank's warning, unless it is of what concerns all."""
        if words not in self._said:
            log.warning("rank %d: %s", rank, words)


class _Reporter(logging.Handler):
    """Lets rank 0 hear the warnings of another."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._watch.tell(record.getMessage())
        except RuntimeError:  # the store is gone
            self.handleError(record)
