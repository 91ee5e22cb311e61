"""What a user can mend becomes one sentence and an exit code, not a traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metalearn.cli.config_files import config_folder
from metalearn.errors import (
    DataError,
    DisagreementError,
    NonFiniteError,
    RankError,
    SettingError,
    StorageError,
)
from metalearn.near_names import nearest, with_nearest

__all__ = [
    "KEPT_ON_RESUMING",
    "KNOWN_ERRORS",
    "Ended",
    "JobError",
    "check_options",
    "one_sentence_errors",
]


class Ended(SystemExit):
    """The end of the program after a sentence that has been printed."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(code)
        self.sentence = sentence


class JobError(Exception):
    """A job of a sweep has ended in a process of its own; the message says which and why."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence, code)  # both, so that it can be sent to another process
        self.sentence, self.code = sentence, code

    def __str__(self) -> str:
        return self.sentence


KNOWN_ERRORS = (
    SettingError, DataError, NonFiniteError, DisagreementError, RankError, MemoryError, OSError,
    HydraException, OmegaConfBaseException,
)  # fmt: skip
"""What `one_sentence_errors` answers with a sentence, whatever else it says."""

KEPT_ON_RESUMING = "a resumed run keeps its settings but for device, test_tasks, tracker, trainer.*"
"""What is said of a setting that is given beside ``resume=``."""

_USAGE_ERROR = 2
_LAUNCHERS = ("joblib", "submitit", "ray")
"""Packages whose own errors tell of a job's process that was lost."""
_OPTIONAL = ("ood", "experiment")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Nothing about the command is wrong: 1."""


@contextmanager
def one_sentence_errors(config_name: str = "") -> Iterator[None]:
    """Turn errors that a user can mend into a sentence on standard error and SystemExit.

    Args:
        config_name: of the command's YAML, from which settings and choices are quoted.
    """
    try:
        yield
    except (NonFiniteError, DisagreementError, MemoryError, StorageError, RankError) as error:
        _fail(str(error) or "memory ran out", 1)
    except (SettingError, DataError) as error:
        _fail(str(error), _USAGE_ERROR)
    except JobError as error:
        _fail(str(error), error.code)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_one_sentence(error, config_name), _USAGE_ERROR)
    except OSError as error:
        if (name := error.filename) is None:
            raise
        _fail(f"{name}: {error.strerror}"[-400:], 1 if error.errno in _DISK else _USAGE_ERROR)
    except RuntimeError as error:
        from metalearn.core.memory import is_out_of_memory  # with torch, which raised it

        if _is_of_launcher(error):
            _fail(_lost_job(error), 1)
        if not is_out_of_memory(error):
            raise
        _fail(f"memory ran out: {str(error).splitlines()[0]}", 1)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.filename is not None:  # of the run's log
            _fail(f"{cause.filename}: {cause.strerror}", 1)
        if not _is_of_hydra(error):
            raise
        _fail(_misfit_choice(config_name) or str(error), _USAGE_ERROR)
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if not _is_of_launcher(error):
            raise
        _fail(_lost_job(error), 1)


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options that Hydra would answer with a page of usage.

    Raises:
        SettingError: the first of them.
    """

    def refuse(message: str) -> NoReturn:
        shown = " ".join(part for part in arguments if part.startswith("-"))
        left = message.removeprefix("unrecognized arguments: ").split()
        if left and left[0] in arguments and not left[0].startswith("-"):
            apart = f"{left[0]} stands apart from those before"
            raise SettingError("options", shown, f"settings in one row are needed, and {apart}")
        raise SettingError("options", shown, f"{message}; --hydra-help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    rerun = parser.parse_args(arguments).experimental_rerun
    if rerun is not None and not Path(rerun).is_file():
        raise SettingError("--experimental-rerun", rerun, "a file that a run has left is needed")


def _one_sentence(error: BaseException, config_name: str) -> str:
    """A Hydra or OmegaConf error as one sentence, with the nearest known key for a misspelt one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SettingError | DataError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OverrideParseException):
        return f"{error.override!s}: this cannot be read as setting=value"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        known = f"known: {', '.join(error.options)}"
        return (
            f"{group}: there is no choice {choice!r}; {with_nearest(known, choice, error.options)}"
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: this setting has to be given"
    place = re.search(r"full_key: (\S+)", str(error))
    if isinstance(error, OmegaConfBaseException) and place:
        return f"{place[1]}: {str(error).splitlines()[0]}"
    text = " ".join(str(error).split())
    lost = re.search(r"Could not delete[^']* '([^']+)'", text)
    if lost:
        return f"~{lost[1]}: there is nothing of that name to take away"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return _misfit_choice(config_name) or _unknown(unknown[1], config_name)
    twice = re.search(r"Could not append to config. An item is already at '([^']+)'", text)
    if twice:
        return f"+{twice[1]}: this setting is there already; without + it is changed"
    several = re.match(r"Ambiguous value for argument '([^']*)'", text)
    if several:
        return f"{several[1]}: several values are for a sweep (-m); a list is in brackets"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text += f": {str(error.__cause__).splitlines()[0]}"
    return text


def _unknown(name: str, config_name: str) -> str:
    """What to say of a setting or a group that is not there."""
    choices: dict[str, list[str]] = {key: [] for key in _own_settings(config_name)}
    for group in _groups(config_name):
        for path in _choices(group):
            for key in _keys(path):
                choices.setdefault(f"{group}.{key}", []).append(f"{group}={path.stem}")
    key = name.partition("=")[0]
    if choices.get(key):
        resumed = any(part.startswith("resume=") for part in _overrides())
        kept = "" if not resumed or key.startswith("trainer.") else f"; {KEPT_ON_RESUMING}"
        return f"{key}: there is no such setting here; it is one of {', '.join(choices[key])}{kept}"
    parts = [name for name in choices if name.startswith(f"{key}.")]
    last = key.rpartition(".")[2]  # as trainer.test_tasks, which is test_tasks
    near = last if last in choices else nearest(key, sorted(choices))
    hint = f"did you mean {near}?" if near else "--help lists all"
    if parts:
        hint = f"{', '.join(parts)} are there"
    return f"{key}: there is no such setting; {hint}"


def _misfit_choice(config_name: str) -> str | None:
    """What to say where something else than a name was given as the choice of a group."""
    for override in OverridesParser.create().parse_overrides(_overrides()):
        group, value = override.key_or_group, override.value()
        if not group:
            return f"{override.input_line}: this cannot be read as setting=value"
        if override.is_delete() or isinstance(value, str | list):
            continue
        if group in _groups(config_name):
            known = [path.stem for path in _choices(group)]
            rest = f", or ~{group} for none" if group in _OPTIONAL else ""
            return str(SettingError(group, value, f"one of {', '.join(known)} is needed{rest}"))
        parts = [key for key in _own_settings(config_name) if key.startswith(f"{group}.")]
        if parts:
            return str(SettingError(group, value, f"this holds settings: {', '.join(parts)}"))
    return None


def _groups(config_name: str) -> list[str]:
    """The groups of a command's YAML."""
    defaults = _own_yaml(config_name).get("defaults") or ()
    names = [str(name) for entry in defaults if isinstance(entry, dict) for name in entry]
    return [name for name in names if not name.startswith("override")]


def _own_settings(config_name: str) -> list[str]:
    """Settings of a command's YAML, those within others with dots."""
    yaml = _own_yaml(config_name)
    own = {k: part for k, part in yaml.items() if k not in ("defaults", "hydra")}
    return _with_nested(own)


def _with_nested(own: dict[str, Any]) -> list[str]:
    nested = [f"{k}.{name}" for k, part in own.items() if isinstance(part, dict) for name in part]
    return [*own, *nested]


def _own_yaml(config_name: str) -> dict[str, Any]:
    return _read(config_folder() / f"{config_name}.yaml")


def _read(path: Path) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return {str(key): part for key, part in node.items()} if isinstance(node, dict) else {}


def _choices(group: str) -> list[Path]:
    return sorted((config_folder() / group).glob("*.yaml"))


def _keys(path: Path) -> list[str]:
    keys = _with_nested(_read(path))
    return [key for key in keys if not key.startswith("_") and key != "defaults"]


def _overrides() -> list[str]:
    found: list[str] = get_args_parser().parse_args(sys.argv[1:]).overrides
    return found


def _is_of_launcher(error: BaseException) -> bool:
    """Whether what starts jobs in processes of their own raised an error."""
    return type(error).__module__.partition(".")[0] in _LAUNCHERS


def _lost_job(error: BaseException) -> str:
    kept = "runs that had begun go on with resume=<their folder>"
    causes = [each for each in (error, error.__cause__) if each is not None]
    why = "; ".join(dict.fromkeys(text for each in causes for text in _first_and_last(each)))
    return f"a job's process was lost, and the sweep ends ({why}); {kept}"


def _first_and_last(error: BaseException) -> list[str]:
    """Lines of a message that say what and why: what stands between is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\"'")]
    return [*lines[:1], *lines[-1:]] or [type(error).__name__]


def _is_of_hydra(error: BaseException) -> bool:
    """Whether Hydra itself raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("hydra.")


def _fail(sentence: str, code: int) -> NoReturn:
    if sys.stdout is not None:  # as under pythonw, or >&-
        sys.stdout.flush()
    ranks, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if code != _USAGE_ERROR or ranks in ("", "1") or rank == "0":  # else all would say it
        print(f"error: {' '.join(sentence.splitlines())}", file=sys.stderr)
    raise Ended(sentence, code)
