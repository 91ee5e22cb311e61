"""A command that several processes share, as ``torchrun`` starts them.

Axes: R ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, NoReturn

from metalearn.cli.going_on import with_run_found
from metalearn.cli.rank_folders import rank_folder
from metalearn.errors import SettingError

if TYPE_CHECKING:
    from metalearn.ranks import Ranks

__all__ = ["check_alike", "ranks_of_command", "shared_by_ranks"]

_SHARED = ("train", "evaluate", "diagnose", "attribute")
"""Commands that ranks share."""
_ALONE = ("", "1")
"""Values of WORLD_SIZE of a process by itself."""
_ASKING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version"}
_SWEEPING = {"-m", "--multirun"}
_TIMEOUT = "METALEARN_RANK_TIMEOUT"

_ranks: list[Ranks] = []
"""Those of the command that runs, where it is shared."""


def ranks_of_command() -> Ranks:
    """The ranks that share the command which runs; one by itself."""
    from metalearn.ranks import OneRank  # with torch, which --help does without

    return _ranks[-1] if _ranks else OneRank()


@contextmanager
def shared_by_ranks(name: str, arguments: Sequence[str]) -> Iterator[list[str]]:
    """A block in which a command is shared; gives its arguments as this rank takes them.

    All but the first rank print nothing, and leave nothing but a temporary folder, which goes.

    Args:
        name: of the command.
        arguments: as given.

    Raises:
        SettingError: a command that one process takes alone.
        RankError: not all ranks came, or one was lost.
    """
    count = os.environ.get("WORLD_SIZE", "")
    asks = any(argument.partition("=")[0] in _ASKING for argument in arguments)
    if count == "1" and os.environ.get("RANK", "0") not in ("", "0"):
        from metalearn.ranks import launched

        launched()  # which refuses that
    if count in _ALONE or (asks and os.environ.get("RANK") == "0"):
        yield with_run_found(arguments) if name == "train" else list(arguments)
        return
    if asks:
        with _nothing():
            yield list(arguments)
        return
    if name not in _SHARED:
        accepted = f"{', '.join(_SHARED)} are what {count} ranks can share; others run without"
        _refuse(name, accepted)
    if _SWEEPING & set(arguments):
        accepted = "one run is what ranks can share; a sweep (-m) goes without torchrun"
        _refuse(" ".join(sorted(_SWEEPING & set(arguments))), accepted)
    from metalearn.ranks import joined
    from metalearn.tracking import code_versions

    with joined(_timeout()) as ranks:
        _ranks.append(ranks)
        try:
            check_alike(ranks, {"command": " ".join([name, *arguments]), **code_versions()})
            own = ranks.agreed(with_run_found(arguments) if ranks.rank == 0 else None)
            if ranks.rank == 0:
                yield own
                return
            with rank_folder() as folder, _nothing():
                yield [*own, f"hydra.run.dir={folder}", "hydra/job_logging=none"]
        finally:
            _ranks.pop()


def _refuse(what: str, accepted: str) -> NoReturn:
    """Say what ranks cannot share, to those too that were started with something else."""
    from metalearn.ranks import refused

    refused(SettingError("torchrun", what, accepted))


def check_alike(ranks: Ranks, what: Mapping[str, str]) -> None:
    """Refuse ranks that differ in what has to be the same on all.

    Args:
        ranks: that share a run.
        what: by its name, such as ``"code"``.

    Raises:
        SettingError: names the first that differs, and the rank.
    """
    first, *others = ranks.of_each(dict(what))
    for rank, other in enumerate(others, 1):
        for name in {**first, **other}:
            has, needed = (one.get(name, "nothing") for one in (other, first))
            if has != needed:
                accepted = f"{needed} is needed, as rank 0 has it"
                raise SettingError(f"{name} of rank {rank}", has, accepted)


def _timeout() -> float:
    """Seconds that ranks wait for each other.

    Raises:
        SettingError: no number above 0.
    """
    given = os.environ.get(_TIMEOUT, "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SettingError(_TIMEOUT, given, "a number of seconds above 0 is needed")
    return seconds


@contextmanager
def _nothing() -> Iterator[None]:
    """A block that prints nothing."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
