"""Convolution over tasks against `F.conv2d` task by task, in value and two derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from metalearn.core.ops import blocks
from metalearn.core.ops.convolution import convolution
from metalearn.core.ops.folding import task_columns
from metalearn.core.ops.windows import window_of
from tests.support import oracles

pytestmark = pytest.mark.usefixtures("both_ways")


class Counting:
    """A product that notes how many tasks it is given."""

    def __init__(self, product: Any) -> None:
        self.product, self.tasks = product, []

    def __call__(self, a: Tensor, b: Tensor, **settings: Any) -> Tensor:
        self.tasks.append(len(a))
        return self.product(a, b, **settings)


WINDOWS: dict[str, tuple[Any, Any, Any, Any]] = {
    "3x3": (3, 1, 1, 1),
    "strided": (3, 2, 1, 1),
    "oblong": ((2, 3), (1, 2), (1, 0), 1),
    "dilated": (2, 1, 1, (2, 1)),
    "pixel": (1, 1, 0, 1),
    "gaps": (1, 2, 0, 1),
}
windows = pytest.mark.parametrize("window", WINDOWS)
biased = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])


def noise(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    source = oracles.generator(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_(grad)


def operands(
    window: str, bias: bool, tasks: int = 2, samples: int = 2, outputs: int = 3
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x [T, B, 4, 3, 2]``, ``weight [T, O, K]``, ``bias [T, 1, O]``."""
    down, across = window_of(*WINDOWS[window]).size
    x, weight = noise(tasks, samples, 4, 3, 2), noise(tasks, outputs, down * across * 2, seed=1)
    return x, weight, noise(tasks, 1, outputs, seed=2) if bias else None


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, window: str) -> Tensor:
    """The same, one task after another, by torch's own convolution."""
    size, stride, padding, dilation = WINDOWS[window]
    down, across = window_of(size, stride, padding, dilation).size
    results = []
    for t in range(len(x)):
        kernel = weight[t].unflatten(1, (down, across, -1)).permute(0, 3, 1, 2)
        own = None if bias is None else bias[t, 0]
        z = F.conv2d(x[t].movedim(-1, 1), kernel, own, stride, padding, dilation)
        results.append(z.movedim(1, -1))
    return torch.stack(results)


@windows
@biased
def test_values_are_those_of_each_task(window: str, bias: bool) -> None:
    x, weight, own = operands(window, bias, tasks=3)
    z = convolution(x, weight, own, window_of(*WINDOWS[window]))
    torch.testing.assert_close(z, by_torch(x, weight, own, window), rtol=1e-12, atol=1e-12)


@windows
@biased
def test_first_and_second_derivatives_by_finite_differences(window: str, bias: bool) -> None:
    x, weight, own = operands(window, bias, samples=1, outputs=2)
    given = tuple(v for v in (x, weight, own) if v is not None)

    def function(x: Tensor, weight: Tensor, own: Tensor | None = None) -> Tensor:
        return convolution(x, weight, own, window_of(*WINDOWS[window]))

    assert gradcheck(function, given)
    assert gradgradcheck(function, given)


@windows
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_second_order_whatever_is_wanted_of_it(window: str, wanted: tuple[int, ...]) -> None:
    """Through gradients of some operands, back to all of them, against torch's own."""

    def second(function: Any) -> list[Tensor]:
        given = [v.detach().clone().requires_grad_() for v in operands(window, bias=True)]
        loss = (function(*given) ** 3).sum()  # the cotangent of z depends on all operands
        grads = torch.autograd.grad(loss, [given[i] for i in wanted], create_graph=True)
        total = sum((g * (i + g)).sum() for i, g in zip(wanted, grads))
        return list(torch.autograd.grad(total, given))

    actual = second(lambda x, w, b: convolution(x, w, b, window_of(*WINDOWS[window])))
    expected = second(lambda x, w, b: by_torch(x, w, b, window))
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10 * float(e.detach().abs().max()))


@windows
@pytest.mark.parametrize("data", [(), (0,), (1,), (0, 2)], ids=str)
def test_operands_that_are_data_have_no_gradient(window: str, data: tuple[int, ...]) -> None:
    given = [v.detach() for v in operands(window, bias=True)]
    for i, value in enumerate(given):
        value.requires_grad_(i not in data)
    wanted = [v for v in given if v.requires_grad]
    results = []
    for function in (
        lambda x, w, b: convolution(x, w, b, window_of(*WINDOWS[window])),
        lambda x, w, b: by_torch(x, w, b, window),
    ):
        loss = (function(*given) ** 2).sum()
        grads = torch.autograd.grad(loss, wanted, create_graph=True)
        results.append([*grads, *torch.autograd.grad(sum((g**2).sum() for g in grads), wanted)])
    for a, e in zip(*results):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-9)


@windows
def test_a_chain_of_two_and_a_graph_that_is_used_twice(window: str) -> None:
    """Cotangents written in place are nobody else's: a second pass gives the same."""
    x, weight, own = operands(window, bias=True)
    head = noise(2, 2, 3, seed=5)

    def chain(function: Any, pixel: Any) -> Tensor:
        return (pixel(function(x, weight, own).tanh(), head) ** 2).sum()

    def ours(z: Tensor, head: Tensor) -> Tensor:
        return convolution(z, head, None, window_of(1, 1, 0, 1))

    def plain(z: Tensor, head: Tensor) -> Tensor:
        return torch.einsum("tbhwc,toc->tbhwo", z, head)

    results = []
    for loss in (
        chain(lambda x, w, b: convolution(x, w, b, window_of(*WINDOWS[window])), ours),
        chain(lambda x, w, b: by_torch(x, w, b, window), plain),
    ):
        found = []
        for _ in range(2):
            first = torch.autograd.grad(loss, (x, weight, head), create_graph=True)
            total = sum((g**2).sum() for g in first)
            for _ in range(2):
                inputs = (x, weight, own, head)
                found.append(torch.autograd.grad(total, inputs, retain_graph=True))
        for again in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(again, found[0]))
        results.append(found[0])
    for a, e in zip(*results):
        torch.testing.assert_close(
            a, e, rtol=1e-9, atol=1e-9 * max(1.0, float(e.detach().abs().max()))
        )


@windows
@pytest.mark.parametrize("many", [1, 2, 3], ids=["one_by_one", "two_and_one", "at_once"])
@pytest.mark.parametrize("apart", [False, True], ids=["tasks", "samples"])
def test_a_relu_that_joins_is_a_relu_before(
    window: str, many: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In value and two derivatives, also by finite differences; blocks of any size."""
    monkeypatch.setattr(blocks, "_tasks_a_block", lambda count, size: min(many, count))
    monkeypatch.setattr(blocks, "_LARGE", 1 if apart else 2**22)
    x, weight, own = operands(window, bias=True, tasks=3, samples=3)

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return convolution(x, w, b, window_of(*WINDOWS[window]), rectify=True)

    results = []
    for function in (ours, lambda x, w, b: by_torch(x.relu(), w, b, window)):
        value = function(x, weight, own)
        first = torch.autograd.grad((value**3).sum(), (x, weight, own), create_graph=True)
        total = sum((g + g**2).sum() for g in first)
        results.append([value, *first, *torch.autograd.grad(total, (x, weight, own))])
    for a, e in zip(*results):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9 * float(e.detach().abs().max()))
    assert gradgradcheck(ours, tuple(v[:1] for v in (x, weight, own)))


_TASK = 16 * 9 * 8  # bytes of columns: sixteen positions of nine, eight bytes each


@pytest.mark.parametrize(
    ("threads", "budget", "count", "expected"),
    [
        (1, 1, 3, [1, 1, 1]),  # a block has a task at least
        (1, 2 * _TASK, 3, [2, 1]),
        (1, 3 * _TASK - 1, 3, [2, 1]),
        (1, 3 * _TASK, 3, [3]),
        (2, 1, 5, [2, 2, 1]),  # one for each thread
        (2, 4 * _TASK, 10, [6, 4]),  # equal blocks rather than 8 and 2
        (4, 1, 3, [3]),
    ],
)
def test_blocks_have_as_many_tasks_for_each_thread(
    threads: int, budget: int, count: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", budget)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "bmm", counting := Counting(torch.bmm))
    convolution(noise(count, 1, 4, 4, 1), noise(count, 2, 9), None, window_of(3, 1, 1, 1))
    assert counting.tasks == expected


@pytest.mark.parametrize("window", ["3x3", "pixel"])
def test_third_derivatives_are_refused(window: str) -> None:
    x, weight, own = operands(window, bias=True)
    loss = (convolution(x, weight, own, window_of(*WINDOWS[window])) ** 2).sum()
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives of a task-batched convol"):
        torch.autograd.grad((first**2).sum(), x, create_graph=True)


@pytest.mark.parametrize("window", ["3x3", "pixel"])
def test_third_derivatives_are_refused_where_x_is_data(window: str) -> None:
    """Refused either when the graph of the second is asked for or when it is walked."""
    x, weight, own = operands(window, bias=True)
    loss = (convolution(x.detach(), weight, own, window_of(*WINDOWS[window])) ** 3).sum()
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"third derivatives|once_differentiable"):
        (second,) = torch.autograd.grad((first**2).sum(), weight, create_graph=True)
        torch.autograd.grad((second**2).sum(), weight)


@pytest.mark.parametrize("window", ["3x3", "pixel"])
def test_third_derivatives_are_refused_of_a_loss_linear_in_z(window: str) -> None:
    """There dw depends on x alone, not on dz."""
    x, weight, own = operands(window, bias=True)
    loss = convolution(x, weight, own, window_of(*WINDOWS[window])).sum()
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match=r"third derivatives|once_differentiable"):
        (second,) = torch.autograd.grad((first**3).sum(), x, create_graph=True)
        torch.autograd.grad((second * x).sum(), x)


def test_columns_of_tasks_follow_one_another() -> None:
    x, window = noise(3, 2, 2, 4, 3), window_of(2, 1, 0, 1)
    rows = task_columns(x, window)
    assert rows.shape == (3, 2 * 3 * 2, 8)
    for t in range(3):
        assert torch.equal(rows[t : t + 1], task_columns(x[t : t + 1], window))


def test_tasks_that_share_a_kernel_by_expansion() -> None:
    """Strides of zero over the task axis: the gradient of the shared kernel is the sum."""
    x, weight, _ = operands("3x3", bias=False, tasks=3)
    shared = weight.detach()[:1].requires_grad_()
    window = window_of(*WINDOWS["3x3"])
    (shared_grad,) = torch.autograd.grad(
        (convolution(x, shared.expand_as(weight), None, window) ** 2).sum(), shared
    )
    copies = shared.detach().repeat(3, 1, 1).requires_grad_()
    (grads,) = torch.autograd.grad((convolution(x, copies, None, window) ** 2).sum(), copies)
    torch.testing.assert_close(shared_grad[0], grads.sum(0))
