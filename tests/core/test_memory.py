"""Amounts of memory as text, and the most that is alive at once on known allocations."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import memory
from metalearn.core.memory import (
    describe_bytes,
    free_memory,
    is_out_of_memory,
    parse_bytes,
    peak_memory,
)
from metalearn.errors import SettingError

CPU = torch.device("cpu")
MB = 2**20


def megabyte(fill: float = 0.0) -> Tensor:
    return torch.full((MB // 4,), fill)


# --- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("500 MiB", 500 * 2**20),
        ("1.5gib", 3 * 2**29),
        (".5kB", 500),
        ("0.25 KiB", 256),
        ("  2 tb  ", 2 * 10**12),
        ("1TiB", 2**40),
        ("7mb", 7 * 10**6),
        ("123", 123),
        (4096, 4096),
        (1, 1),
    ],
)
def test_parse_bytes(text: str | int, expected: int) -> None:
    found = parse_bytes(text)
    assert found == expected and isinstance(found, int)


@pytest.mark.parametrize(
    "text",
    ["", "GB", "8 G", "8 bytes", "eight GB", "-1GB", "1e9", "8GB!", "1,5GB", "0", "0GB", "0.4"],
)
def test_text_that_is_no_amount_is_refused(text: str) -> None:
    message = rf"^memory='{text}': an amount above 0 such as 8GB, 500MiB is needed$"
    with pytest.raises(SettingError, match=message):
        parse_bytes(text)


@pytest.mark.parametrize("value", [0, -5, True, False, None, float("nan"), float("inf"), [8]])
def test_values_that_are_no_amount_are_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^trainer\.memory=.*: an amount above 0 such as 8GB"):
        parse_bytes(value, "trainer.memory")


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (5_600_000, "5.6 MB"),
        (1.5e9, "1.5 GB"),
        (123_456_789_000, "123 GB"),
    ],
)
def test_describe_bytes(amount: float, text: str) -> None:
    assert describe_bytes(amount) == text
    if text.endswith("B"):
        assert parse_bytes(text) == pytest.approx(amount, rel=5e-3)


# --- the most that is alive at once ------------------------------------------------------------


def two_alive() -> None:
    a = megabyte()
    b = megabyte()
    assert a.shape == b.shape


def one_freed_between() -> None:
    a = megabyte()
    del a
    b = megabyte()
    assert b.numel() == MB // 4


def views_cost_nothing() -> None:
    a = megabyte()
    views = [a.view(-1, 2), a[3:], a.view(2, -1).T, a.expand(5, -1), a.detach()]
    assert all(v.untyped_storage().data_ptr() == a.data_ptr() for v in views)


def in_place() -> None:
    a = megabyte()
    a.add_(1).mul_(2).relu_()
    assert float(a[0]) == 2.0


def three_then_one() -> Tensor:
    parts = [megabyte(float(i)) for i in range(3)]
    first = parts[0]
    parts.clear()
    return first.add_(1)


def result_counts() -> list[Tensor]:
    return [megabyte(), megabyte(), megabyte(), megabyte()]


def many_in_turn() -> None:
    for i in range(20):
        a = megabyte(float(i))
        assert float(a[0]) == i
        del a


def kept_for_the_way_back() -> None:
    """The leaf, whose gradient would go there, and the results that exp keeps."""
    x = megabyte(0.5).requires_grad_()
    y = x.exp().exp().exp()
    del x
    assert y.requires_grad


@pytest.mark.parametrize(
    ("function", "megabytes"),
    [
        (two_alive, 2),
        (one_freed_between, 1),
        (views_cost_nothing, 1),
        (in_place, 1),
        (three_then_one, 3),
        (result_counts, 4),
        (many_in_turn, 1),
        (kept_for_the_way_back, 4),
        (lambda: None, 0),
    ],
)
def test_peak_memory_of_known_allocations(function: Callable[[], Any], megabytes: int) -> None:
    slack = 4096  # the scalars of the functions above
    for _ in range(2):
        assert megabytes * MB <= peak_memory(function, CPU) <= megabytes * MB + slack


def test_tensors_made_before_are_counted_where_views_of_them_are_made() -> None:
    before = megabyte()
    assert peak_memory(lambda: before + 1, CPU) == MB
    assert peak_memory(lambda: before[5:], CPU) == MB
    assert peak_memory(lambda: before[5:] + 1, CPU) == 2 * MB - 20


def test_peak_memory_of_several_outputs_and_of_transforms() -> None:
    x = megabyte().view(4, -1)
    assert peak_memory(lambda: torch.max(x, 0), CPU) == MB // 4 + MB // 2  # values and int64
    mapped = torch.func.vmap(lambda row: row * 2)
    assert MB <= peak_memory(lambda: mapped(x), CPU) <= 2 * MB  # x itself may come in as a view
    slope = peak_memory(lambda: torch.func.grad(lambda v: (v * v).sum())(x), CPU)
    assert 2 * MB <= slope <= 4 * MB


def test_an_error_passes_and_counting_starts_again() -> None:
    def fails() -> None:
        a = megabyte()
        raise OSError(f"after {a.numel()} numbers")

    with pytest.raises(OSError, match=f"after {MB // 4} numbers"):
        peak_memory(fails, CPU)
    assert peak_memory(one_freed_between, CPU) == MB


# --- the machine ------------------------------------------------------------------------------


def test_free_memory_of_a_cpu_is_positive_and_unknown_elsewhere() -> None:
    free = free_memory(CPU)
    assert isinstance(free, int) and free > MB
    assert free_memory(torch.device("meta")) is None


def test_free_memory_is_the_least_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, container, expected in (
        (7, 5, 5),
        (5, 7, 5),
        (None, 3, 3),
        (4, None, 4),
        (9, 0, 0),
    ):
        monkeypatch.setattr(memory, "_available_in_system", lambda value=system: value)
        monkeypatch.setattr(memory, "_left_in_cgroup", lambda value=container: value)
        assert free_memory(CPU) == expected
    monkeypatch.setattr(memory, "_available_in_system", lambda: None)
    monkeypatch.setattr(memory, "_left_in_cgroup", lambda: None)
    assert free_memory(CPU) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000", "memory.current": "400\n"}, 600),
        ({"memory.max": "1000", "memory.current": "1400"}, 0),
        ({"memory.max": "max\n", "memory.current": "400"}, None),
        ({"memory.limit_in_bytes": "900", "memory.usage_in_bytes": "100"}, 800),
        (
            {
                "memory.max": "1000",
                "memory.current": "900",
                "memory.stat": "anon 1\ninactive_file 70",
            },
            170,
        ),
        ({"memory.max": "1000", "memory.current": "900", "memory.stat": "unexpected"}, 100),
        ({}, None),
    ],
    ids=str,
)
def test_what_a_container_leaves(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / ("memory" if "_in_bytes" in name else "") / name).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda path: tmp_path)
    assert memory._left_in_cgroup() == expected


# --- errors that mean it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (SettingError("memory", "1 kB", "at least 2 kB is needed"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=str,
)
def test_is_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_no_machine_has_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.float64)
    assert is_out_of_memory(caught.value)


_FAULTS = '''
import ctypes, resource, sys
from metalearn.core import meta_gradient, sgd
from metalearn.core.memory import keep_freed_memory
import torch

if sys.argv[1] == "meta_gradient":
    tasks = ((torch.ones(2, 1),) * 2,) * 2
    from metalearn.types import TaskBatch
    loss_fn = lambda params, batch: ((params * batch[0] - batch[1]) ** 2).mean()
    meta_gradient(loss_fn, torch.zeros(1), TaskBatch(*tasks), optimizer=sgd(0.1), steps=1)
elif sys.argv[1] == "keep":
    print(keep_freed_memory())

libc = ctypes.CDLL(None)
libc.malloc.restype, size = ctypes.c_void_p, 20 * 2**20

def faults():
    """Blocks alone, since a small object at the end of the heap would hold it there by chance."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        blocks = [libc.malloc(ctypes.c_size_t(size)) for _ in range(8)]
        for block in blocks:
            ctypes.memset(block, 1, size)
        for block in reversed(blocks):
            libc.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
'''


def _faults(what: str, **environment: str) -> list[str]:
    """What the script above prints; allocator settings of this process do not count."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, what],
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator, on no other libc"
)
def test_freed_memory_is_kept_after_a_meta_gradient_and_not_against_the_environment() -> None:
    """The pages of 320 MiB are faulted in anew, or none of them."""
    anew = int(_faults("nothing")[-1])
    assert anew > 100  # 81,920 of 4 KiB; fewer where the system hands out larger pages
    assert int(_faults("meta_gradient")[-1]) < anew / 10
    kept, faults = _faults("keep")
    assert kept == "True" and int(faults) < anew / 10
    left, faults = _faults("keep", MALLOC_MMAP_THRESHOLD_="1000000")
    assert left == "False" and int(faults) > anew / 2


def test_memory_is_left_to_other_systems_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    keep = memory.keep_freed_memory.__wrapped__
    with monkeypatch.context() as patch:
        patch.setattr(memory.sys, "platform", "darwin")
        assert keep() is False
    with monkeypatch.context() as patch:
        patch.setattr(memory.ctypes, "CDLL", lambda name: object())  # a libc without mallopt
        patch.setattr(memory.sys, "platform", "linux")
        assert keep() is False
