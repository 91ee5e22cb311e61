"""Hints in errors name settings as they are typed: ``trainer.batch_norm=groupnorm``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from omegaconf import DictConfig

from metalearn.errors import SettingError

__all__ = ["hints_as_typed", "typed_names"]

P = ParamSpec("P")
R = TypeVar("R")

_HINT = re.compile(r"(?<![\w.+/=])([a-z]\w*)=(?=[\w\[{'\"])")


def hints_as_typed(function: Callable[P, R]) -> Callable[P, R]:
    """A function of a configuration whose errors tell of the groups that settings are in.

    Rooms below know their arguments alone, as they stand in Python.
    """

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SettingError as error:
            config = next(v for v in (*args, *kwargs.values()) if isinstance(v, DictConfig))
            accepted = typed_names(error.accepted, config, error.setting.partition(".")[0])
            if accepted == error.accepted:
                raise
            raise SettingError(error.setting, error.value, accepted) from error

    return named


def typed_names(text: str, config: DictConfig, near: str = "") -> str:
    """A sentence in which ``name=value`` has the group that it is a setting of.

    Args:
        text: the sentence.
        config: composed, or that of a run.
        near: the group that is meant where several have such a setting; without it none is.
    """
    groups = [str(name) for name in config if isinstance(config._get_node(name), DictConfig)]

    def typed(found: re.Match[str]) -> str:
        name = found[1]
        homes = [group for group in groups if name in config[group]]
        homes = [near] if near in homes else homes
        return found[0] if name in config or len(homes) != 1 else f"{homes[0]}.{found[0]}"

    return _HINT.sub(typed, text)
