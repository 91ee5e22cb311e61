"""Where a result comes from: code, versions, machine, command line.

Axes: none; everything here is plain JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from metalearn.files import replace_file

__all__ = ["code_versions", "device_name", "plain", "provenance", "write_json"]

_PACKAGE = Path(__file__).resolve().parents[1]
_DISTRIBUTIONS = {
    "metalearn": "torch-metalearn",
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
}


def provenance() -> dict[str, object]:
    """What is needed to tell later which code on which machine gave a result.

    Returns:
        ``git`` (``revision`` and ``dirty`` of the package's own checkout, or None outside one),
        ``versions`` (None where a package is not installed), ``platform``, ``cpu`` (``name``,
        ``count``, ``threads`` that torch uses), ``devices`` (accelerators), ``time`` (UTC, ISO
        8601) and ``command``. The machine's name is left out on purpose.
    """
    return {
        "git": _git(_PACKAGE),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": {
            "name": _cpu_name(),
            "count": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "devices": _devices(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv),
    }


def code_versions() -> dict[str, str]:
    """What processes need alike to compute the same: versions, and a checksum of this package.

    Returns:
        ``version of <package>``, by `provenance`'s names, and ``code``: of all modules of this
        package as they lie on the disk, committed or not.
    """
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    versions = {f"version of {name}": str(found) for name, found in _versions().items()}
    return {**versions, "code": digest.hexdigest()[:16]}


def write_json(path: Path, value: object, *, make_folder: bool = True) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Non-finite numbers become ``null``, since JSON has no word for them; tensors and arrays become
    lists, paths become strings. The folder is made if it is missing, unless ``make_folder`` is
    false.

    Raises:
        TypeError: a value that has no JSON form.
        OSError: what the system refuses, with ``path`` as its file.
    """
    text = json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(path, lambda file: file.write(text.encode() + b"\n"), make_folder=make_folder)


def plain(value: object) -> object:
    """``value`` in JSON's own types, with ``None`` for every non-finite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def _versions() -> dict[str, str | None]:
    known: dict[str, str | None] = {"python": platform.python_version()}
    return known | {name: _version(package) for name, package in _DISTRIBUTIONS.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(package: Path) -> dict[str, object] | None:
    top = _run_git(package, ["rev-parse", "--show-toplevel"])
    # An installed copy may lie inside somebody else's repository, whose revision says nothing.
    if not top or (Path(top) / package.name).resolve() != package:
        return None
    revision = _run_git(package, ["rev-parse", "HEAD"])
    if not revision:
        return None
    changes = _run_git(Path(top), ["status", "--porcelain"])
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def _run_git(folder: Path, command: Iterable[str]) -> str | None:
    # Inside a git hook these variables point at another repository.
    private = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}
    environment = {k: v for k, v in os.environ.items() if k not in private}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # reading must not disturb a git at work
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command],
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """What a device is: the name of a card, ``"cpu"`` or ``"mps"``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []
