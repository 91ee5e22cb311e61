"""The compiled functions: when they are taken, when not, and that threads change nothing."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from metalearn.core.native import NormTangent, kernels, kernels_for, library, without_kernels
from metalearn.core.ops.columns import Columns, to_columns
from metalearn.core.ops.normalization import normalize
from metalearn.core.ops.windows import window_of
from metalearn.errors import SettingError
from tests.support import oracles

with_a_compiler = pytest.mark.skipif(
    kernels_for(torch.zeros(1)) is None, reason="needs Linux with g++ or clang++"
)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(0), dtype=torch.float64)


LOADING = [
    sys.executable,
    "-c",
    "from metalearn.core.native.library import library; assert library() is not None",
]


def made_by_another_process(anew: Path) -> Path:
    """What is kept, of which this process has nothing in its memory."""
    subprocess.run(LOADING, check=True)
    (kept,) = anew.rglob("kernels-*.so")
    return kept


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a new process of a user without compiled code; gives the folder that is to have it."""
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "cache"))
    library._library.cache_clear()
    yield tmp_path / "cache" / "compiled"
    library._library.cache_clear()


@with_a_compiler
def test_they_are_compiled_once_into_a_folder_of_the_users_own(anew: Path) -> None:
    assert library.library() is not None
    (kept,) = anew.rglob("kernels-*.so")
    assert stat.S_IMODE(anew.stat().st_mode) == 0o700
    made, whole = kept.stat().st_mtime_ns, kept.read_bytes()
    library._library.cache_clear()
    assert library.library() is not None
    assert kept.stat().st_mtime_ns == made
    cut = kept.with_name("cut")  # written apart, as this process has the other one in its memory
    cut.write_bytes(whole[:60_000])
    cut.replace(kept)
    library._library.cache_clear()
    assert library.library() is not None  # half of it would end the process
    assert len(kept.read_bytes()) > 60_000
    assert {file.name.split(".")[-1] for file in kept.parent.iterdir()} == {"so", "sha256", "lock"}


def test_a_compiler_that_hangs_is_ended_with_what_it_started(
    anew: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    slow.chmod(0o700)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(library, "_PATIENCE", 0.5)
    assert library.library() is None
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_the_environment_may_do_without(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_KERNELS", "never")
    assert library.library() is None
    assert not anew.exists()
    library._library.cache_clear()
    monkeypatch.setenv("METALEARN_KERNELS", "sometimes")
    with pytest.raises(SettingError, match=r"METALEARN_KERNELS='sometimes'.* auto, never"):
        library.library()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler-anywhere", "'", "\udcff"])
def test_a_compiler_that_fails_leaves_torchs_operations(
    compiler: str, anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr("sys.platform", "linux")
    with caplog.at_level(logging.INFO, "metalearn"):
        assert library.library() is None
    assert "no compiled kernels, so torch's own operations are taken" in caplog.text
    assert not list(anew.rglob("kernels-*"))


def test_without_a_compiler(
    anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    with caplog.at_level(logging.INFO, "metalearn"):
        assert library.library() is None
    assert "g++ or clang++" in caplog.text


def test_a_folder_that_others_may_write_to_is_not_used(
    anew: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr("sys.platform", "linux")
    anew.mkdir(parents=True)
    anew.chmod(0o777)
    with caplog.at_level(logging.INFO, "metalearn"):
        assert library.library() is None
    assert "a folder of your own with mode 0700 is needed" in caplog.text


@with_a_compiler
def test_what_has_a_graph_or_a_tangent_or_is_traced_takes_torchs_operations() -> None:
    plain = torch.zeros(3)
    assert kernels_for(plain) is not None
    assert kernels_for(nn.Parameter(plain)) is None
    with torch.no_grad():
        assert kernels_for(nn.Parameter(plain)) is not None
    for other in (plain.bfloat16(), plain.long(), plain.to("meta")):
        assert kernels_for(other) is None
    with forward_ad.dual_level():
        assert kernels_for(forward_ad.make_dual(plain, plain)) is None
    seen: list[bool] = []

    def note(x: Tensor) -> Tensor:
        seen.append(kernels_for(x) is None)
        return x + 1

    make_fx(note)(plain)
    with FakeTensorMode(allow_non_fake_inputs=True):
        note(plain)
    torch.vmap(note)(plain)
    torch.func.grad(lambda x: note(x).sum())(plain)
    assert all(seen) and len(seen) == 4
    with without_kernels():
        assert kernels_for(plain) is None


@with_a_compiler
def test_a_library_without_a_function_leaves_torchs_operations(
    anew: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = tmp_path / "nothing.cpp"
    empty.write_text("")
    monkeypatch.setattr(library, "_SOURCES", [empty])
    kernels._kernels.cache_clear()
    with caplog.at_level(logging.INFO, "metalearn"):
        assert kernels_for(torch.zeros(1)) is None
    kernels._kernels.cache_clear()
    assert "no compiled kernels" in caplog.text and "to_columns_float32" in caplog.text


@with_a_compiler
def test_a_compiler_that_hides_functions_is_overruled(
    anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ -fvisibility=hidden")
    found = library.library()
    assert found is not None and found.to_columns_float32


@with_a_compiler
def test_what_is_whole_but_no_library_is_made_anew(anew: Path) -> None:
    kept = made_by_another_process(anew)
    kept.write_bytes(b"no library")
    kept.with_suffix(".sha256").write_text(library._digest(kept))
    assert library.library() is not None
    assert len(kept.read_bytes()) > 10_000


@with_a_compiler
def test_what_never_loads_is_compiled_no_more_than_twice(
    anew: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    junk = tmp_path / "junk"
    junk.write_text(
        f'#!/bin/sh\necho once >> {tmp_path}/runs\nfor last; do :; done\necho no > "$last"\n'
    )
    junk.chmod(0o700)
    monkeypatch.setenv("CXX", str(junk))
    for _ in range(4):
        library._library.cache_clear()
        assert library.library() is None
    assert (tmp_path / "runs").read_text() == "once\n" * 2


@with_a_compiler
def test_a_pipe_in_the_place_of_the_library_holds_nobody_up(anew: Path) -> None:
    kept = made_by_another_process(anew)
    kept.unlink()
    os.mkfifo(kept)
    assert library.library() is not None and kept.is_file()


@with_a_compiler
def test_two_processes_compile_once(anew: Path, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    counted.write_text(f'#!/bin/sh\necho once >> {tmp_path}/runs\nexec g++ "$@"\n')
    counted.chmod(0o700)
    surroundings = {**os.environ, "CXX": str(counted)}
    both = [subprocess.Popen(LOADING, env=surroundings) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert (tmp_path / "runs").read_text() == "once\n"


@with_a_compiler
def test_a_trace_of_torch_jit_follows_torchs_operations() -> None:
    x, other = noise(1, 6, 6, 16), noise(2, 6, 6, 16)[1:]
    window = window_of(3, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda v: to_columns(v, window) + 0, (x,), check_trace=False)
    torch.testing.assert_close(traced(other), to_columns(other, window), rtol=0, atol=0)


@with_a_compiler
def test_inside_transforms_torchs_operations_are_taken() -> None:
    x, window = noise(1, 6, 6, 16), window_of(3, 1, 1, 1)
    found = torch.func.grad(lambda w: (to_columns(x, window) * w).sum())(noise(1)[0])
    torch.testing.assert_close(found, to_columns(x, window).sum())


@with_a_compiler
def test_what_has_no_memory_is_never_read() -> None:
    x = torch._to_functional_tensor(torch.zeros(2, 5, 6, 16))
    assert type(x) is Tensor and kernels_for(x) is None
    ours = kernels_for(torch.zeros(1))
    assert ours is not None
    with pytest.raises(RuntimeError, match="with memory of its own"):
        ours.norm(x, None, None, eps=1e-5, dim=1, leak=1.0)


@with_a_compiler
def test_operands_of_several_kinds_take_torchs_operations() -> None:
    """Kernels read memory: all that they are given has to have its values there."""
    plain, imaginary = torch.randn(4, 10, 16), torch._neg_view(torch.randn(4, 10, 16))
    zero = torch._efficientzerotensor((4, 10, 16))
    others = (plain.double(), plain.bfloat16(), plain.long(), plain.to("meta"), imaginary, zero)
    for other in others:
        assert kernels_for(plain, other) is None
        assert kernels_for(plain, None, other) is None
    assert kernels_for(plain, None, plain) is not None


@with_a_compiler
def test_scale_and_shift_of_another_type_are_promoted() -> None:
    z, scale = noise(2, 10, 16), noise(2, 1, 16).float()
    for given in ((z, scale, scale), (z.float(), scale.double(), None), (z.float(), None, scale)):
        found = normalize(*given, dim=1, eps=1e-5)
        with without_kernels():
            torch.testing.assert_close(found, normalize(*given, dim=1, eps=1e-5))


@with_a_compiler
def test_views_that_negate_and_empty_pictures() -> None:
    z = torch._neg_view(noise(2, 10, 16))
    found = normalize(z, None, None, dim=1, eps=1e-5)
    torch.testing.assert_close(found, normalize(z.resolve_neg(), None, None, dim=1, eps=1e-5))
    for shape in ((2, 3, 0, 6, 4), (2, 3, 6, 6, 0), (0, 3, 6, 6, 4)):
        columns = Columns(torch.zeros(1), window_of(3, 1, 2, 1), shape)
        assert not columns.of(torch.zeros(shape)).any()


@with_a_compiler
def test_memory_that_would_be_misread_is_refused() -> None:
    functions = kernels_for(torch.zeros(1))
    assert functions is not None
    with pytest.raises(RuntimeError, match="contiguous"):
        functions.norm(torch.zeros(4, 10, 16).mT, None, None, eps=1e-5, dim=1, leak=1.0)
    with pytest.raises(RuntimeError, match="float32"):
        functions.norm(torch.zeros(4, 10, 16).double(), None, None, eps=1e-5, dim=1, leak=1.0)
    with pytest.raises(RuntimeError, match="memory of its own"):
        negated = torch._neg_view(torch.zeros(4, 10, 16))
        functions.norm(negated, None, None, eps=1e-5, dim=1, leak=1.0)
    whole, groups = torch.zeros(4, 10, 16), torch.zeros(4, 1, 16)
    with pytest.raises(RuntimeError, match="leak is 0.0"):
        functions.norm_backward(whole, None, whole, None, groups, dim=1, leak=0.0)
    at = NormTangent(None, None, None, whole, whole, whole, None, *3 * [groups], 1.0)
    with pytest.raises(RuntimeError, match="leak is 1.0"):
        functions.norm_second(at, dim=1)


@with_a_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_number_of_threads_changes_no_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_GRAIN", 1)
    z = noise(4, 5, 6, 7, 24).to(dtype)
    window = window_of(3, 2, 1, 1)

    def all_of_them() -> list[Tensor]:
        columns = Columns(z, window, z.shape)
        one = columns.of(z, z.flip(0)).clone()
        pictures = columns.add_up(torch.empty_like(z), z).clone()
        with torch.enable_grad():
            leaf = z.flatten(1, 3).clone().requires_grad_()
            y = normalize(leaf, None, None, dim=1, eps=1e-5, leak=0.0)
            (first,) = torch.autograd.grad((y**3).sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad((first**2).sum(), leaf)
        return [one, pictures, y.detach(), first.detach(), second]

    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(all_of_them())
    assert all(torch.equal(a, b) for a, b in zip(*found))


@with_a_compiler
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far_from_zero"])
def test_sums_of_float32_round_no_worse_than_torchs(offset: float) -> None:
    z = (noise(2, 5000, 24) + offset).requires_grad_()

    def all_of_them(z: Tensor) -> list[Tensor]:
        y = normalize(z, None, None, dim=1, eps=1e-5)
        (first,) = torch.autograd.grad((y**3).sum(), z, create_graph=True)
        return [y.detach(), first.detach(), *torch.autograd.grad((first**2).sum(), z)]

    wanted = all_of_them(z)
    ours = all_of_them(z.detach().float().requires_grad_())
    with without_kernels():
        torchs = all_of_them(z.detach().float().requires_grad_())

    def error(found: Tensor, exact: Tensor) -> float:
        return float((found - exact).norm() / exact.norm())

    for a, b, exact in zip(ours, torchs, wanted):
        assert error(a, exact) < 3 * error(b, exact) + 1e-7
        assert error(a, exact) < 1e-4


def test_a_window_that_sees_nan_and_the_border(both: Callable[[], Iterator[str]]) -> None:
    """What is not a number passes a gate, as in torch, and stays where it is."""
    pictures = torch.full((1, 1, 3, 3, 1), 2.0)
    gate = torch.tensor([1.0, 0.0, -1.0, float("nan"), 5.0, -0.0, 1.0, 1.0, float("inf")])
    for _ in both():
        columns = Columns(pictures, window_of(1, 2, 1, 1), pictures.shape)
        seen = columns.of(pictures, gate.view_as(pictures)).flatten()
        assert seen.tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 0]
        columns = Columns(pictures, window_of(2, 1, 0, 1), pictures.shape)
        seen = columns.of(pictures, gate.view_as(pictures)).flatten().tolist()
        assert seen == [2, 0, 2, 2, 0, 0, 2, 0, 2, 2, 2, 2, 2, 0, 2, 2]


@pytest.fixture
def both() -> Callable[[], Iterator[str]]:
    def ways() -> Iterator[str]:
        yield "kernels, where there are some"
        with without_kernels():
            yield "torch"

    return ways


@with_a_compiler
@pytest.mark.filterwarnings("ignore:.*lru_cache")
@pytest.mark.parametrize("whole", [True, False], ids=["one_graph", "breaks"])
def test_torchs_compiler_follows_torchs_operations(whole: bool) -> None:
    """What is traced at one value holds for another: nothing is written past the graph."""
    window = window_of(3, 1, 1, 1)

    def both_of_them(x: Tensor) -> list[Tensor]:
        return [to_columns(x, window) * 1, normalize(x, None, None, dim=1, eps=1e-5)]

    torch._dynamo.reset()
    traced = torch.compile(both_of_them, backend="aot_eager", fullgraph=whole)
    first, second = noise(2, 5, 6, 16), noise(2, 5, 6, 16).flip(0)
    traced(first)
    for found, wanted in zip(traced(second), both_of_them(second)):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
