"""Settings of a command as ``--help`` shows them: values, with the comments of their YAMLs.

Axes: none.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metalearn.cli.config_files import config_folder

__all__ = ["settings_help"]

_WIDTH = 100
_COLUMN = 32  # where comments begin
_LINE = re.compile(r"^(?P<indent> *)(?:- )?(?P<key>[\w.@/]+):(?P<rest>.*)$")


def settings_help(command: str, *, _root_: DictConfig) -> str:
    """All settings of a composed configuration, beside what their YAMLs say of them.

    A resolver of OmegaConf's: ``${settings_help:train}``. Dollars are doubled, for the template of
    Hydra's help.

    Args:
        command: the name of its YAML.
        _root_: the configuration, with its ``hydra`` node.
    """
    choices = OmegaConf.to_container(_root_.hydra.runtime.choices)
    assert isinstance(choices, dict)
    own = _comments(config_folder() / f"{command}.yaml")
    lines: list[str] = []
    behind = False  # a group, after which a line is left free
    plain = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(plain, dict)
    for name, value in plain.items():
        key = str(name)
        choice = choices.get(key)
        if key == "hydra" or (value is None and choice is None and key in choices):
            continue
        if isinstance(value, dict) and choice is not None:
            lines += ["", f"{key}={choice}"]
            lines += _lines(value, _of_choice(key, str(choice)), indent=2)
            behind = True
            continue
        lines += [""] if behind else []
        lines += _lines({key: value}, own, indent=0)
        behind = False
    return "\n".join(lines).strip("\n").replace("$", "$$") + "\n"


def _lines(
    values: Mapping[Any, Any], comments: Mapping[str, str], indent: int, prefix: str = ""
) -> Iterator[str]:
    for key, value in values.items():
        if key in ("_target_", "_partial_"):
            continue
        name, space = f"{prefix}{key}", " " * indent
        nested = isinstance(value, dict) and bool(value)
        shown = "" if nested else f" {_plain(value)}"
        yield from _beside(f"{space}{key}:{shown}", comments.get(name, ""))
        if nested:
            yield from _lines(value, comments, indent + 2, f"{name}.")


def _beside(text: str, comment: str) -> Iterator[str]:
    """A setting and its comment, which goes on underneath where it is long."""
    if not comment:
        yield text
        return
    parts = textwrap.wrap(comment, _WIDTH - _COLUMN - 2, break_on_hyphens=False)
    if len(text) >= _COLUMN:
        yield text
        text = ""
    for part in parts:
        yield f"{text:<{_COLUMN}}# {part}"
        text = ""


def _plain(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return "{}" if value == {} else str(value)


def _of_choice(group: str, choice: str) -> dict[str, str]:
    """Comments of a choice of a group, and of those that it is made of."""
    path = config_folder() / group / f"{choice}.yaml"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    node = OmegaConf.to_container(OmegaConf.load(path))
    defaults = node.get("defaults") if isinstance(node, dict) else None
    for entry in defaults or ():
        if isinstance(entry, str) and entry not in ("_self_", choice):
            found |= _of_choice(group, entry)
    return found | _comments(path)


def _comments(path: Path) -> dict[str, str]:
    """What stands beside each setting of a YAML, by its name with dots.

    A line of nothing but a comment goes on with what was said of the setting above, where it is
    further to the right than settings are.
    """
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    last = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        before, mark, comment = line.partition("#")
        if not before.strip():
            if mark and last in found and len(before) > len(last.split(".")) * 2:
                found[last] += f" {comment.strip()}"
            continue
        match = _LINE.match(before)
        if match is None:
            last = ""
            continue
        depth = len(match["indent"])
        above = [(d, name) for d, name in above if d < depth]
        last = ".".join([*(name for _, name in above), match["key"]])
        above.append((depth, match["key"]))
        if mark:
            found[last] = comment.strip()
    return found
