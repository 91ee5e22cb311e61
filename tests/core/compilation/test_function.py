"""Functions that are traced and compiled: what they take, refuse, see and remember."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metalearn.core import compiled, functionalize
from metalearn.core.compilation import CompiledFunction, check_agreement
from metalearn.core.compilation import folder as folders
from metalearn.core.compilation.trace import traced
from metalearn.core.precision import networks_in
from metalearn.errors import CompilationError, SettingError, StorageError

X = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 1


def eager(function: Any) -> Any:
    return compiled(function, compiler="aot_eager")


def test_values_of_every_call_count_and_python_runs_at_the_first_alone() -> None:
    calls = []

    def function(tree: Any) -> Any:
        calls.append(1)
        return {"sum": (tree["a"] ** 2).sum(), "both": (tree["a"], tree["b"] + 1)}

    step = eager(function)
    step({"a": X, "b": X})
    first = len(calls)
    found = step({"a": 2 * X, "b": -X})
    assert len(calls) == first
    torch.testing.assert_close(found, {"sum": (4 * X**2).sum(), "both": (2 * X, 1 - X)})


@pytest.mark.parametrize("other", [X[:1], X.float(), X.t().contiguous().t()])
def test_other_shapes_types_and_strides_run_the_function_itself(other: Tensor) -> None:
    calls = []
    step = eager(lambda x: calls.append(1) or x * 2)
    step(X)
    before = len(calls)
    torch.testing.assert_close(step(other), other * 2)
    assert len(calls) == before + 1


def test_other_trees_run_the_function_itself() -> None:
    step = eager(lambda tree: sum(tree.values()))
    torch.testing.assert_close(step({"a": X, "b": X}), 2 * X)
    torch.testing.assert_close(step({"a": X, "c": X}), 2 * X)


@pytest.mark.parametrize("before", [True, False])
def test_inside_a_transform_it_is_the_function(before: bool) -> None:
    step = eager(lambda x: (x**3).sum())
    if before:
        step(X[0])
    torch.testing.assert_close(torch.func.vmap(step)(X), (X**3).sum(1))
    torch.testing.assert_close(torch.func.grad(step)(X[0]), 3 * X[0] ** 2)


def test_tensors_from_elsewhere_are_seen_as_they_are() -> None:
    scale = torch.ones(3, dtype=torch.float64)
    step = eager(lambda x: x * scale)
    torch.testing.assert_close(step(X), X)
    scale.mul_(3)
    torch.testing.assert_close(step(X), 3 * X)


def test_inside_another_it_is_a_part_of_that() -> None:
    inner = eager(lambda x: x**2)
    outer = eager(lambda x: inner(x).sum())
    outer(X)
    torch.testing.assert_close(outer(2 * X), (4 * X**2).sum())
    assert inner.seconds == 0


def test_tensors_from_elsewhere_may_become_of_another_kind() -> None:
    held = torch.nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    step = eager(lambda x: x * held)
    step(X)
    held.data = torch.full((1,), 5.0, dtype=torch.float64)
    torch.testing.assert_close(step(X), 5 * X)


def test_another_precision_runs_the_function_itself() -> None:
    linear, params, buffers = functionalize(torch.nn.Linear(3, 2))
    step = eager(lambda params, x: linear(params, buffers, x))
    inputs = X.float()
    plain = step(params, inputs)
    with networks_in(torch.bfloat16):
        torch.testing.assert_close(step(params, inputs), linear(params, buffers, inputs))
        assert not torch.equal(step(params, inputs), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert eager(lambda x: x @ x.T)(inputs).dtype == torch.bfloat16
        assert step(params, inputs).dtype == torch.bfloat16


def test_it_is_compiled_anew_where_that_is_asked_for() -> None:
    calls = []
    step = eager(lambda x: calls.append(1) or x * 2)
    step(X)
    step.compile(X[:1])
    before = len(calls)
    torch.testing.assert_close(step(3 * X[:1]), 6 * X[:1])
    assert len(calls) == before
    torch.testing.assert_close(step(X), 2 * X)
    assert len(calls) == before + 1


def test_an_argument_that_the_function_holds_too_is_two_tensors() -> None:
    held = X.clone()
    step = eager(lambda x: x * held)
    step(held)
    torch.testing.assert_close(step(2 * X), 2 * X * X)


def test_one_tensor_as_two_arguments_is_two() -> None:
    step = eager(lambda a, b: a - 2 * b)
    step(X, X)
    torch.testing.assert_close(step(X, 3 * X), -5 * X)


def test_derivatives_and_leaves_that_need_them_give_no_graph() -> None:
    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: (y**3).sum())(x)

    step = eager(slope)
    theta = X.clone().requires_grad_()
    for _ in range(2):
        found = step(theta)
        torch.testing.assert_close(found, 3 * X**2)
        assert not found.requires_grad
    assert theta.grad is None


def test_it_leaves_modes_and_random_state() -> None:
    state = torch.get_rng_state()
    step = eager(lambda x: x.exp())
    with torch.no_grad():
        step(X)
        assert not torch.is_grad_enabled()
    step(X)
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)


HELD = torch.full((3,), 2.0, dtype=torch.float64)
OTHER = HELD.clone()
SPARSE = torch.eye(3, dtype=torch.float64).to_sparse()
READS = "reads the value of a tensor"
REFUSED: dict[str, tuple[str, Any]] = {
    "an if": (READS, lambda x: x if x.sum() > 0 else -x),
    "item": (READS, lambda x: x * HELD[0].item()),
    "a number of what is held": (READS, lambda x: x * float((HELD + 1).sum())),
    "tolist": (READS, lambda x: x * HELD.tolist()[0]),
    "numpy": (READS, lambda x: x * float(HELD.numpy()[0])),
    "tolist under a gradient": (
        READS,
        lambda x: torch.func.grad(lambda p: (p * p.detach().tolist()[0][0]).sum())(x),
    ),
    "dlpack": (READS, lambda x: x * float(np.from_dlpack(HELD)[0])),
    "tensor_split": (READS, lambda x: torch.tensor_split(x, torch.tensor([1]) + 0)[0]),
    "a sparse tensor": (READS, lambda x: x * float(SPARSE.sum())),
    "a write to a sparse tensor": ("writes to its arguments, or", lambda x: (SPARSE.mul_(2), x)[1]),
    "data": ("sets the data", lambda x: (setattr(OTHER, "data", x[0] + 0), x * 2)[1]),
    "equal": (READS, lambda x: x if torch.equal(HELD, HELD + 0) else -x),
    "chosen rows": (READS, lambda x: x[:, (HELD > 1).nonzero().flatten()]),
    "rows by a ramp": (READS, lambda x: x[:, (torch.arange(3) > 1).nonzero().flatten()]),
    "a mask": (READS, lambda x: x[x > 0]),
    "a draw": (r"draws random numbers \(rand\)", lambda x: x * torch.rand(3, dtype=x.dtype)),
    "a write": ("writes to its arguments, or", lambda x: x.add_(1) * 2),
    "a write to a view": ("writes to its arguments, or", lambda x: x[:1].mul_(2) * 2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compiled_says_why(case: str) -> None:
    reason, function = REFUSED[case]
    with pytest.raises(CompilationError, match=f"this function cannot be compiled: it {reason}"):
        CompiledFunction(function, compiler="aot_eager").trace(X.clone())


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1:], lambda x: x.view(1, 3).t()[:2]])
def test_a_write_to_a_tensor_from_elsewhere_is_refused_before_it_is_made(view: Any) -> None:
    counter = torch.zeros(3, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        view(counter).add_(x[0, 0])
        return x

    step = CompiledFunction(function, compiler="aot_eager")
    with pytest.raises(CompilationError, match="or to a tensor from elsewhere"):
        step.trace(X)
    assert torch.equal(counter, torch.zeros_like(counter))
    given = X.clone()
    with pytest.raises(CompilationError, match="it writes to its arguments"):
        CompiledFunction(lambda x: x.zero_() + 1, compiler="aot_eager").trace(given)
    assert torch.equal(given, X)


def test_numbers_that_are_the_same_at_each_call_may_be_read() -> None:
    def function(x: Tensor) -> Tensor:
        ramp = torch.arange(3, dtype=x.dtype)
        return x * ramp.tolist()[1] + x[:, torch.arange(2)].sum()

    step = eager(function)
    torch.testing.assert_close(step(X), function(X))
    torch.testing.assert_close(step(3 * X), function(3 * X))


def test_what_is_refused_has_changed_nothing() -> None:
    for _, function in REFUSED.values():
        with pytest.raises(CompilationError):
            CompiledFunction(function, compiler="aot_eager").trace(X.clone())
    assert torch.equal(SPARSE.to_dense(), torch.eye(3, dtype=torch.float64))
    assert torch.equal(OTHER, HELD) and HELD.tolist() == [2.0] * 3


def test_what_follows_from_given_values_is_not_the_same_at_each_call() -> None:
    def function(x: Tensor) -> Tensor:
        kept = torch.zeros(3, dtype=x.dtype)
        kept.copy_(x[0])
        return x * float(kept.sum())

    with pytest.raises(CompilationError, match=READS):
        eager(function)(X)


def test_too_many_operations_are_not_traced_to_the_end() -> None:
    taken: list[int] = []

    def function(x: Tensor) -> Tensor:
        for index in range(1000):
            taken.append(index)
            x = x + 1
        return x

    step = CompiledFunction(function, compiler="aot_eager", limit=50)
    with pytest.raises(CompilationError, match="it takes more than 50 operations"):
        step.trace(X)
    assert len(taken) <= 60


OTHERS: dict[str, tuple[Any, Any]] = {
    "a shape": (torch.ones(3), torch.ones(1)),
    "a leaf more": ([torch.ones(3)], [torch.ones(3), torch.zeros(2)]),
    "a name": ({"a": torch.ones(3)}, {"b": torch.ones(3)}),
    "a type": (torch.ones(3), torch.ones(3, dtype=torch.int64)),
    "whole numbers": (torch.tensor([2**60]), torch.tensor([2**60 + 1])),
    "infinities": (torch.tensor([math.inf]), torch.tensor([-math.inf])),
    "infinite or not a number": (torch.tensor([math.inf]), torch.tensor([math.nan])),
}


@pytest.mark.parametrize("case", OTHERS)
def test_trees_of_another_form_do_not_agree(case: str) -> None:
    with pytest.raises(CompilationError):
        check_agreement(*OTHERS[case])
    for tree in OTHERS[case]:
        check_agreement(tree, tree)


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (1.0, math.inf, False),
        (1 + 1e-9, 1.0, True),
        (1 + 1e-6, 1.0, False),
    ],
)
def test_what_agrees(found: float, wanted: float, same: bool) -> None:
    one, other = ({"a": torch.tensor([2.0, v], dtype=torch.float64)} for v in (found, wanted))
    if same:
        check_agreement(one, other)
    else:
        with pytest.raises(CompilationError, match="differs from itself"):
            check_agreement(one, other)


def test_errors_of_the_function_are_its_own() -> None:
    def function(x: Tensor) -> Tensor:
        raise SettingError("lr", -1, "a number above 0 is needed")

    with pytest.raises(SettingError, match="^lr=-1: a number above 0 is needed$"):
        eager(function)(X)
    with pytest.raises(ZeroDivisionError):
        eager(lambda x: x * (1 / 0))(X)


def test_bad_arguments_are_refused() -> None:
    unknown: Any = "gcc"
    with pytest.raises(SettingError, match="^compiler='gcc': "):
        compiled(lambda x: x, compiler=unknown)
    with pytest.raises(SettingError, match=r"args\[1\]='int': a torch.Tensor is needed"):
        eager(lambda x, y: x)(X, 3)


def test_a_write_to_a_tensor_of_its_own_is_none_of_these() -> None:
    step = eager(lambda x: torch.zeros_like(x)[:1].add_(x[:1]) * 2)
    step(X)
    torch.testing.assert_close(step(3 * X), 6 * X[:1])


@pytest.mark.parametrize("given", [3.0, None, (), (X, 2)])
def test_what_gives_no_tensor_is_refused(given: Any) -> None:
    with pytest.raises(CompilationError, match="it gives what is no tensor"):
        eager(lambda x: given)(X)


def test_a_function_of_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^args=\(\): a tensor is needed"):
        eager(lambda: X * 2)()


def test_code_that_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(name: str) -> Any:
        return lambda graph, given: lambda *values: [1.1 * v for v in graph(*values)]

    monkeypatch.setattr("torch._dynamo.lookup_backend", wrong)
    step = eager(lambda x: x * 2)
    with pytest.raises(CompilationError, match="compiled, it differs from itself by 0.1"):
        step(X)
    with pytest.raises(CompilationError, match="differs from itself"):  # and not silently taken
        step(X)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class InvalidCxxCompiler(RuntimeError):
        pass

    def none(graph: Any, given: Any) -> Any:
        raise InvalidCxxCompiler("No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: none)
    with pytest.raises(CompilationError, match=r"finds no C\+\+ compiler that works"):
        compiled(lambda x: x * 2)(X)


def test_the_graph_has_one_name_for_the_same_work() -> None:
    names = {
        traced(function, (x,)).digest([x])
        for function in (lambda x: x * 2, lambda y: y * 2)
        for x in (X, X + 1)
    }
    assert len(names) == 1
    assert traced(lambda x: x * 3, (X,)).digest([X]) not in names
    assert traced(lambda x: x * 2, (X[:1],)).digest([X[:1]]) not in names


@pytest.mark.skipif(os.name == "nt", reason="modes of folders are those of POSIX")
def test_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "own"))
    own = folders.compiled_folder()
    made = own.parent
    assert made == tmp_path / "own" / "compiled" and folders.compiled_folder() == own
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (made, own))
    made.chmod(0o777)
    with pytest.raises(StorageError, match="a folder of your own with mode 0700 is needed"):
        folders.compiled_folder()
    own.rmdir()
    made.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    made.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="a folder of your own"):
        folders.compiled_folder()
    monkeypatch.setenv("METALEARN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.compiled_folder().parent == tmp_path / "xdg" / "metalearn" / "compiled"


def test_a_folder_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="compiled code cannot be kept there"):
        compiled(lambda x: x * 2)(X)


def test_seconds_are_remembered_and_damage_is_no_error(tmp_path: Path) -> None:
    folders.remember_seconds(tmp_path, "a", 2.0)
    folders.remember_seconds(tmp_path, "b", 0.5)
    assert folders.remembered_seconds(tmp_path) == {"a": 2.0, "b": 0.5}
    for damaged in ("", "[1]", '{"a": "x", "b": 1}', "\x00"):
        (tmp_path / "seconds.json").write_text(damaged)
        assert folders.remembered_seconds(tmp_path) == ({"b": 1.0} if "b" in damaged else {})
    folders.remember_seconds(tmp_path / "seconds.json", "c", 1.0)  # no folder: only a guess is lost


def test_the_environment_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "/somewhere"):
        if before is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        else:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        with pytest.raises(ZeroDivisionError), folders.keeping_compiled(tmp_path):
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
            raise ZeroDivisionError
        assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before


@pytest.mark.inductor
def test_inductor_gives_the_same_and_code_that_is_kept_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    taken = []

    def function(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: torch.tanh(y @ y.T).sum())(x)

    for _ in range(2):
        step = compiled(function)
        step(X)
        torch.testing.assert_close(step(X / 3), function(X / 3), rtol=1e-12, atol=1e-12)
        taken.append(counters["aot_autograd"]["autograd_cache_hit"])
    assert taken[1] == taken[0] + 1  # else torch passes by what it keeps, and takes seconds
    assert step.expected_seconds(X) == pytest.approx(step.seconds, abs=1e-3)
    assert "seconds.json" in os.listdir(folders.compiled_folder())


@pytest.mark.inductor
def test_code_that_is_kept_is_of_the_same_shapes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    taken = []
    for count in (4, 400, 4):
        step = compiled(lambda x: torch.tanh(x).sum(0))
        x = torch.ones(count, 3, dtype=torch.float64)
        torch.testing.assert_close(step(x), torch.tanh(x).sum(0))
        taken.append(counters["aot_autograd"]["autograd_cache_hit"])
    assert taken[1] == taken[0] and taken[2] == taken[1] + 1


class Checked:
    """A node of a user's own, which looks at what it is given, and keeps its shape."""

    def __init__(self, data: Any, shape: Any = None) -> None:
        if isinstance(data, Tensor) and data.dim() != 2:
            raise ValueError("data has to be [n, d]")
        self.data, self.shape = data, shape or data.shape


pytree.register_pytree_node(
    Checked, lambda node: ([node.data], node.shape), lambda values, shape: Checked(values[0], shape)
)


def test_nodes_of_a_users_own_are_taken_and_given() -> None:
    step = compiled(lambda node: {"own": Checked(node.data * 2)}, compiler="aot_eager")
    x = Checked(torch.ones(2, 3))
    assert step.trace(x) is step.trace(x)
    torch.testing.assert_close(step(x)["own"].data, 2 * x.data)
    assert step.run(x)["own"].shape == (2, 3)
    assert step.run(Checked(torch.ones(3, 3))) is None


def test_where_there_is_no_home_a_folder_is_named_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(self: Path) -> Path:
        if str(self).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return self

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    assert folders.compiled_folder().parent == tmp_path / "compiled"
    monkeypatch.delenv("METALEARN_CACHE")
    with pytest.raises(StorageError, match="^METALEARN_CACHE=None: a folder for compiled code"):
        folders.compiled_folder()
