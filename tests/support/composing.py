"""Hydra for thousands of commands in one process: what each does twice, or alike, is done once.

A command composes its settings a first time to learn whether it is a sweep, and reads every YAML
anew. `tests.config.test_composing` compares with Hydra as it is, which real processes use.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra._internal.hydra import Hydra
from hydra.plugins.config_source import ConfigResult

__all__ = ["composed_once", "parsed_once"]

GET_MODE = Hydra.get_mode


def composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the first composition where nothing asks for ``hydra.mode``: no YAML does."""

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        asked = any("hydra" in override for override in overrides)
        return GET_MODE(self, config_name, overrides) if asked else None

    monkeypatch.setattr(Hydra, "get_mode", get_mode)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Parse a YAML again only when the file has changed."""
    with pytest.MonkeyPatch.context() as patch:
        for source in (FileConfigSource, ImportlibResourcesConfigSource):
            patch.setattr(source, "load_config", _kept(source.load_config))
        yield


def _kept(load: Any) -> Any:
    known: dict[Any, ConfigResult] = {}

    def load_config(self: Any, config_path: str) -> ConfigResult:
        key = (self.provider, self.path, config_path, _version(self, config_path))
        if key not in known:
            known[key] = load(self, config_path)
        found = known[key]  # Hydra takes defaults out of what it is given, and adds to the header
        return replace(found, config=copy.deepcopy(found.config), header=dict(found.header))

    return load_config


def _version(source: Any, config_path: str) -> tuple[int, int] | None:
    """When a file was written, and its size; None for Hydra's own."""
    if not isinstance(source, FileConfigSource):
        return None
    name = source._normalize_file_name(config_path)
    try:
        found = os.stat(os.path.join(source.path, name))
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
