"""What a user can mend becomes one sentence and an exit code, not a traceback."""

from __future__ import annotations

import difflib
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metalearn.errors import DataError, NonFiniteError, SettingError
from metalearn.tour import DisagreementError

__all__ = ["one_sentence_errors"]

_USAGE_ERROR = 2


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn errors that a user can mend into a sentence on standard error and SystemExit."""
    try:
        yield
    except (NonFiniteError, DisagreementError, MemoryError) as error:
        _fail(str(error), 1)
    except (SettingError, DataError) as error:
        _fail(str(error), _USAGE_ERROR)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_one_sentence(error), _USAGE_ERROR)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", _USAGE_ERROR)
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)


def _one_sentence(error: BaseException) -> str:
    """A Hydra or OmegaConf error as one sentence, with the nearest known key for a misspelt one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SettingError | DataError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this cannot be read as setting=value"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: there is no choice {choice!r}; known: {', '.join(error.options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: this setting has to be given"
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown.group(1)}: there is no such setting{_suggestion(unknown.group(1))}"
    return text


def _suggestion(key: str) -> str:
    known: set[str] = set()
    for path in (Path(sys.argv[0]).resolve().parent.parent / "conf").rglob("*.yaml"):
        group = path.parent.name if path.parent.name != "conf" else ""
        node = OmegaConf.load(path)
        if isinstance(node, DictConfig):
            known |= {
                f"{group}.{k}" if group else k
                for k in map(str, node)
                if not k.startswith("_") and k != "defaults"
            }
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists all"


def _fail(sentence: str, code: int) -> None:
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(code)
