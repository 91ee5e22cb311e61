"""Where the YAMLs are that settings are composed from."""

from __future__ import annotations

from pathlib import Path

from metalearn.errors import DataError

__all__ = ["config_folder"]


def config_folder() -> Path:
    """``conf/``: inside the package where it was installed, beside it in a checkout.

    Raises:
        DataError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "conf", package.parent / "conf")
    for folder in places:
        if (folder / "train.yaml").is_file():
            return folder
    raise DataError(f"{places[0]}: the settings that come with metalearn are missing; install it")
