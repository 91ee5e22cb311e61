"""How much memory a computation takes, and how much there is."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metalearn.core.tree import leaves
from metalearn.errors import SettingError

__all__ = [
    "check_memory",
    "describe_bytes",
    "free_memory",
    "is_out_of_memory",
    "keep_freed_memory",
    "parse_bytes",
    "peak_memory",
    "ranks_of_machine",
    "sharers",
    "synchronize",
]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT, _BLOCK = 2**30, 2**25  # bytes; the latter is the most that glibc itself would grow to
_SMALL = 2**26  # bytes that are not worth asking for
_ALLOCATOR_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_")

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(value: str | int, setting: str = "memory") -> int:
    """``"8GB"``, ``"500 MiB"`` or a number of bytes as bytes.

    Raises:
        SettingError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(value))
    factor = _UNITS.get(match[2].lower()) if match else None
    amount = float(match[1]) * factor if match and factor else 0.0
    if isinstance(value, bool) or amount < 1:
        raise SettingError(setting, value, "an amount above 0 such as 8GB, 500MiB is needed")
    return int(amount)


def describe_bytes(amount: float) -> str:
    """``1.23 GB``, three digits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount:.0f} bytes"


def free_memory(device: torch.device) -> int | None:
    """Bytes that the device has free; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type != "cpu":
        return None
    found = [_available_in_system(), _left_in_cgroup()]
    known = [amount for amount in found if amount is not None]
    return min(known) if known else None


def ranks_of_machine() -> int:
    """How many processes that ``torchrun`` has started share this machine; 1 without it."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(given)) if given.isdecimal() else 1


def sharers(device: torch.device) -> int:
    """How many ranks of this machine take memory of a device: of accelerators each has its own."""
    ranks = ranks_of_machine()
    return ranks if device.type == "cpu" else 1


def check_memory(
    setting: str, value: object, need: int, device: torch.device | str = "cpu"
) -> None:
    """Refuse a setting that makes tensors of ``need`` bytes where the device has less than that.

    Raises:
        SettingError: names the setting and both amounts.
    """
    free = free_memory(torch.device(device)) if need > _SMALL else None
    if free is not None and need > free:
        accepted = f"what fits the memory is needed: of {describe_bytes(free)} that are free, "
        raise SettingError(setting, value, f"{accepted}it would take {describe_bytes(need)}")


@cache
def keep_freed_memory() -> bool:
    """Have this process keep the CPU memory it frees, for what it allocates next.

    Under glibc's defaults every large tensor is handed back to the system when it is freed, and the
    next one is cleared page by page: up to half the time of a meta-gradient. This keeps blocks of
    up to 32 MiB, and up to 1 GiB at the end of the heap, for the rest of the process; torch's
    CUDA allocator does the same for a GPU. Allocator settings in the environment
    (``MALLOC_…``, ``GLIBC_TUNABLES``) are left alone.

    Returns:
        Whether it is so: False where the environment decides, and on other C libraries.
    """
    if sys.platform != "linux" or any(name.startswith(_ALLOCATOR_SETTINGS) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _BLOCK) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def peak_memory(function: Callable[[], Any], device: torch.device, *, counted: bool = False) -> int:
    """Most bytes of tensors that were alive at once while ``function`` ran, its result included.

    Tensors made before are counted where ``function`` makes views of them. Work space within one
    operation of torch is not seen, except on CUDA, whose allocator is asked, unless tensors are to
    be ``counted`` there too: an allocator's answer depends on what ran before.
    """
    if device.type == "cuda" and not counted:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        del result
        return int(torch.cuda.max_memory_allocated(device) - before)
    ledger = _Ledger()
    with ledger:
        function()
    return ledger.peak


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done what it was given: nothing on a processor."""
    kind = torch.device(device).type
    if kind != "cpu":
        torch.accelerator.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
    )


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages from their first appearance to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _available_in_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _left_in_cgroup() -> int | None:
    """Bytes below the limit of a container; file caches can be given up."""
    root = Path("/sys/fs/cgroup")
    for limit, used, statistics, cache_name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            left = int((root / limit).read_text()) - int((root / used).read_text())
        except (OSError, ValueError):  # none, or "max"
            continue
        return max(0, left + _statistic(root / statistics, cache_name))
    return None


def _statistic(path: Path, name: str) -> int:
    """The number behind a name in a file of lines ``name number``; 0 where it is not there."""
    try:
        found = dict(line.split(None, 1) for line in path.read_text().splitlines())
        return int(found.get(name, 0))
    except (OSError, ValueError):
        return 0
