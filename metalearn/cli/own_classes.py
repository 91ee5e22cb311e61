"""Classes of one's own by ``_target_``: settings of other classes are left out.

A group's YAML has the settings of its own class. Where another class is named in its place, what a
person did not give and that class does not take is no setting any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from metalearn.cli.given_settings import GivenSetting, given_settings
from metalearn.cli.targets import accepted_of, kept_of
from metalearn.errors import SettingError

__all__ = ["leave_out_others", "leave_out_others_of_job", "shown_without_others"]

_GROUPS = ("task", "data", "ood", "model", "learner", "hyper")
_WIRED = ("seed",)
"""Settings that other settings decide, which a class of one's own is given where it takes them."""


@contextmanager
def shown_without_others() -> Iterator[None]:
    """A block in which Hydra composes, to show it, what would be trained."""
    usual = Hydra.compose_config

    def composed(self: Hydra, *given: Any, **settings: Any) -> DictConfig:
        config = usual(self, *given, **settings)
        leave_out_others(config, given_settings(config.hydra))
        return config

    Hydra.compose_config = composed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.compose_config = usual  # type: ignore[method-assign]


def leave_out_others_of_job(config: DictConfig) -> None:
    """The same, in a job whose overrides Hydra knows."""
    leave_out_others(config, given_settings(HydraConfig.get()))


def leave_out_others(config: DictConfig, given: Sequence[GivenSetting]) -> None:
    """Leave out settings of a group's YAML beside a class that was named in place of its own.

    Those that were given stay. Of others stay those that the class takes where its group was chosen
    too (``model=conv4 model._target_=mine.Wider``), else the seed alone: the class has defaults.

    Args:
        config: composed; changed in place.
        given: what a person gave.
    """
    names = {setting.name for setting in given if not setting.removed}
    for group in _GROUPS:
        if f"{group}._target_" not in names or not isinstance(config.get(group), DictConfig):
            continue
        try:
            accepted = set(accepted_of(config[group], group))
        except SettingError:
            continue  # whoever builds it says what is wrong
        wired = accepted if group in names or group == "learner" else accepted & set(_WIRED)
        stay = {*wired, *kept_of(group)}
        with open_dict(config[group]):
            for name in list(config[group]):
                own = f"{group}.{name}"
                asked = any(known == own or known.startswith(f"{own}.") for known in names)
                if str(name) not in stay and not asked:
                    del config[group][name]
