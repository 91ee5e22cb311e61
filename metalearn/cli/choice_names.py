"""What a group of a configuration is called: by the choice of its YAML, else by what it builds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metalearn.cli.config_files import config_folder

__all__ = ["chosen_name", "name_of"]


def chosen_name(group: str, choice: str | None, target: str | None) -> str | None:
    """The choice, unless another class was named in the place of its own.

    Args:
        group: such as ``"data"``.
        choice: of its YAML.
        target: full name of what is built; None where nothing is known of it.
    """
    own = _targets(group).get(str(choice))
    return choice if target is None or own in (None, target) else short_name(target)


def name_of(group: str, node: Mapping[Any, Any]) -> str:
    """Of a node of which no choice is known: that of the YAML it came from, if that is clear.

    Of several YAMLs for one class it is the first whose settings it has.
    """
    target = str(node.get("_target_", group))
    found = [name for name, own in _targets(group).items() if own == target]
    if len(found) > 1:
        found = [name for name in found if _has_settings_of(node, group, name)][:1]
    return found[0] if found else short_name(target)


def short_name(target: str) -> str:
    """``digits`` of ``metalearn.data.digits_data``."""
    word = target.rpartition(".")[2]
    return word.removesuffix("_data").removesuffix("_tasks") or word


def _has_settings_of(node: Mapping[Any, Any], group: str, choice: str) -> bool:
    """Whether a node has all values of a YAML, but for those that follow others."""
    own = _yaml(config_folder() / group / f"{choice}.yaml")
    plain = {k: v for k, v in own.items() if not (isinstance(v, str) and "${" in v)}
    return all(k in node and node[k] == v for k, v in plain.items() if k != "defaults")


def _targets(group: str) -> dict[str, str | None]:
    """The class of each choice of a group."""
    paths = sorted((config_folder() / group).glob("*.yaml"))
    return {path.stem: _yaml(path).get("_target_") for path in paths}


@functools.cache
def _yaml(path: Path) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(path))
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}
