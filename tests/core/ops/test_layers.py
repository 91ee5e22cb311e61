"""Every layer with a task axis against a loop over tasks of torch's own, values and derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core.ops import blocks, layers
from metalearn.core.ops.folding import fold
from metalearn.core.ops.windows import Window, window_of
from tests.support import oracles

pytestmark = pytest.mark.usefixtures("both_ways")

EPS = 1e-3
Function = Callable[..., Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(seed), dtype=torch.float64)


def operands(*shapes: tuple[int, ...] | None) -> list[Tensor | None]:
    return [None if s is None else noise(*s, seed=i) for i, s in enumerate(shapes)]


def over_loop(function: Function) -> Function:
    """``function`` of one task's operands, one task after another."""

    def looped(*given: Tensor | None) -> Tensor:
        tasks = range(len(next(v for v in given if v is not None)))
        return torch.stack([function(*(v if v is None else v[t] for v in given)) for t in tasks])

    return looped


def derivatives(
    function: Function, given: Sequence[Tensor | None], data: Sequence[int] = ()
) -> list[Tensor]:
    """The value, gradients by all operands but ``data``, and second-order gradients by them."""
    given = [
        v if v is None else v.clone().requires_grad_(i not in data) for i, v in enumerate(given)
    ]
    wanted = [v for v in given if v is not None and v.requires_grad]
    y = function(*given)
    probe = noise(*y.shape, seed=9)
    first = torch.autograd.grad((y.sin() * probe).sum(), wanted, create_graph=True)
    total = sum((g * (i + g)).sum() for i, g in enumerate(first, 1))
    return [v.detach() for v in (y, *first, *torch.autograd.grad(total, wanted))]


def assert_same(
    actual: Function, expected: Function, given: Sequence[Tensor | None], data: Sequence[int] = ()
) -> None:
    found, right = derivatives(actual, given, data), derivatives(expected, given, data)
    assert len(found) == len(right) >= 3
    for a, e in zip(found, right):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9 * max(1.0, float(e.abs().max())))


affine = pytest.mark.parametrize(
    "affine", [(1, 1), (1, 0), (0, 1), (0, 0)], ids=["affine", "scale", "shift", "plain"]
)
leaks = pytest.mark.parametrize("leak", [1.0, 0.0, 0.1], ids=["plain", "relu", "leaky"])


def parameters(affine: tuple[int, int], *shape: int) -> list[Tensor | None]:
    return [noise(*shape, seed=5 + i) if has else None for i, has in enumerate(affine)]


def scale_of(gamma: Tensor | None, beta: Tensor | None) -> Tensor | None:
    """Ones beside a shift alone, for which torch's norms have no second derivative."""
    return torch.ones_like(beta) if gamma is None and beta is not None else gamma


def after(leak: float, y: Tensor) -> Tensor:
    return y if leak == 1 else F.leaky_relu(y, leak)


@pytest.mark.parametrize("data", [(), (0,)], ids=["through_x", "x_is_data"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), ((2, 3), (2, 1), (0, 1), 1), (2, 1, "same", 2), (1, 1, 0, 1)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_conv2d(
    size: Any, stride: Any, padding: Any, dilation: Any, bias: bool, data: tuple[int, ...]
) -> None:
    window = window_of(size, stride, padding, dilation)
    given = operands((3, 2, 2, 5, 4), (3, 4, 2, *window.size), (3, 4) if bias else None)
    assert_same(
        lambda x, w, b: layers.conv2d(x, w, b, window),
        over_loop(lambda x, w, b: F.conv2d(x, w, b, stride, padding, dilation)),
        given,
        data,
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 3)], ids=str)
def test_linear(batch: tuple[int, ...], bias: bool) -> None:
    given = operands((3, *batch, 4), (3, 2, 4), (3, 2) if bias else None)
    assert_same(layers.linear, over_loop(F.linear), given)


@affine
@leaks
@pytest.mark.parametrize("space", [(), (4,), (3, 2), (2, 2, 2)], ids=str)
def test_batch_norm(space: tuple[int, ...], leak: float, affine: tuple[int, int]) -> None:
    given = [noise(3, 4, 2, *space), *parameters(affine, 3, 2)]

    def composite(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return after(leak, F.batch_norm(x, None, None, scale_of(gamma, beta), beta, True, eps=EPS))

    assert_same(lambda *v: layers.batch_norm(*v, eps=EPS, leak=leak), over_loop(composite), given)


@affine
@leaks
@pytest.mark.parametrize("space", [(4,), (3, 2), (2, 2, 2)], ids=str)
def test_instance_norm(space: tuple[int, ...], leak: float, affine: tuple[int, int]) -> None:
    given = [noise(3, 4, 2, *space), *parameters(affine, 3, 2)]

    def composite(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return after(leak, F.instance_norm(x, None, None, scale_of(gamma, beta), beta, eps=EPS))

    assert_same(
        lambda *v: layers.instance_norm(*v, eps=EPS, leak=leak), over_loop(composite), given
    )


@affine
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("space", [(), (3,), (3, 2)], ids=str)
def test_group_norm(space: tuple[int, ...], groups: int, affine: tuple[int, int]) -> None:
    if groups == 4 and not space:
        space = (2,)  # a group of one number has no variance
    given = [noise(3, 2, 4, *space), *parameters(affine, 3, 4)]
    assert_same(
        lambda x, g, b: layers.group_norm(x, groups, g, b, eps=EPS),
        over_loop(lambda x, g, b: F.group_norm(x, groups, g, b, eps=EPS)),
        given,
    )


@affine
@pytest.mark.parametrize(
    ("batch", "shape"),
    [((4,), (3,)), ((2, 3), (2,)), ((2,), (3, 2)), ((), (4,)), ((2, 2), (2, 1, 3))],
    ids=str,
)
def test_layer_norm(
    batch: tuple[int, ...], shape: tuple[int, ...], affine: tuple[int, int]
) -> None:
    given = [noise(3, *batch, *shape), *parameters(affine, 3, *shape)]
    assert_same(
        lambda x, g, b: layers.layer_norm(x, len(shape), g, b, eps=EPS),
        over_loop(lambda x, g, b: F.layer_norm(x, shape, scale_of(g, b), b, eps=EPS)),
        given,
    )


@affine
@leaks
@pytest.mark.parametrize("data", [(), (0,)], ids=["through_x", "x_is_data"])
@pytest.mark.parametrize(
    ("filters", "size", "stride", "padding"),
    [(12, (1, 2), 1, 0), (9, 3, 2, 1), (5, 2, (1, 2), (0, 1)), (2, 1, 1, 0), (3, 3, 1, 1)],
)
def test_conv_batch_norm(
    filters: int, size: Any, stride: Any, padding: Any, data: tuple[int, ...], leak: float,
    affine: tuple[int, int],
) -> None:  # fmt: skip
    """With x as data the first, second and fourth of the windows fold the norm into weights."""
    window = window_of(size, stride, padding, 1)
    channels = 1 if size != 1 else 2
    weight = noise(3, filters, channels, *window.size, seed=1)
    given = [noise(3, 2, channels, 5, 4), weight, *parameters(affine, 3, filters)]

    def composite(x: Tensor, w: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        z = F.conv2d(x, w, None, stride, padding)
        y = F.batch_norm(z, None, None, scale_of(gamma, beta), beta, True, eps=EPS)
        return after(leak, y)

    assert_same(
        lambda *v: conv_batch_norm(*v, window=window, leak=leak), over_loop(composite), given, data
    )


def conv_batch_norm(
    x: Tensor, weight: Tensor, *affine: Tensor | None, window: Window, leak: float
) -> Tensor:
    """As a run of layers takes it."""
    if not layers.can_fold(x, weight):
        return layers.conv_batch_norm(x, weight, *affine, window, eps=EPS, leak=leak)
    z = layers.folded_conv_batch_norm(x, weight, *affine, window, eps=EPS).whole()
    return after(leak, z.movedim(-1, 2))


@pytest.mark.parametrize("rectify", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("affine", [(1, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("block", [1, 2**21], ids=["task_by_task", "at_once"])
def test_a_convolution_of_a_folded_product(
    rectify: bool, affine: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolution, batch norm, ReLU, convolution: the pictures between are never whole."""
    monkeypatch.setattr(blocks, "_BLOCK", block)
    window, x = window_of(2, 1, 1, 1), noise(3, 2, 1, 5, 4)
    given = [noise(3, 6, 1, 2, 2, seed=1), *parameters(affine, 3, 6)]
    given += [noise(3, 2, 6, 2, 2, seed=4), noise(3, 2, seed=5)]

    def ours(*v: Any) -> Tensor:
        product = layers.folded_conv_batch_norm(x, *v[:3], window, eps=EPS)
        return layers.conv2d(product, *v[3:], window, rectify=rectify)

    def composite(x: Tensor, w: Tensor, gamma: Any, beta: Any, w2: Tensor, b2: Tensor) -> Tensor:
        z = F.conv2d(x, w, None, 1, 1)
        y = F.batch_norm(z, None, None, scale_of(gamma, beta), beta, True, eps=EPS)
        return F.conv2d(y.relu() if rectify else y, w2, b2, 1, 1)

    assert_same(ours, lambda *v: over_loop(composite)(x, *v), given, ())


@pytest.mark.parametrize(
    ("affine", "by"),
    [((0, 0), 0), ((1, 0), 0), ((1, 0), 1), ((1, 1), 0), ((1, 1), 1), ((0, 1), 0), ((0, 1), 2)],
    ids=str,
)
def test_second_derivatives_of_a_fold_along_one_operand(affine: tuple[int, int], by: int) -> None:
    """Only one of the first derivatives is differentiated; the others give no cotangent."""
    x, window = noise(3, 4, 1, 5, 4), window_of(2, 1, 0, 1)
    given = [noise(3, 6, 1, 2, 2, seed=1), *parameters(affine, 3, 6)]
    probe = noise(3, 4, 6, 4, 3, seed=3)

    def ours(w: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        product = layers.folded_conv_batch_norm(x, w, gamma, beta, window, eps=EPS)
        return product.whole().movedim(-1, 2)

    def composite(x: Tensor, w: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        scale = scale_of(gamma, beta)
        return F.batch_norm(F.conv2d(x, w), None, None, scale, beta, True, eps=EPS)

    found = []
    for function in (ours, lambda *v: over_loop(composite)(x, *v)):
        inputs = [v if v is None else v.clone().requires_grad_() for v in given]
        loss = (function(*inputs).exp() * probe).sum()
        (first,) = torch.autograd.grad(loss, inputs[by], create_graph=True)
        wanted = [v for v in inputs if v is not None]
        found.append(torch.autograd.grad((first**2).sum(), wanted))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_fold_of_pictures_with_a_background_is_right_in_float32() -> None:
    """Thousands of equal columns, whose float32 sum rounds the same way each time."""
    picture = torch.full((1, 20, 1, 28, 28), 0.93)
    picture[:, :, :, 9:17, 12:15] = 0.07
    matrix = noise(1, 9, 16).float()
    window = window_of((3, 3), 1, 1, 1)
    ones = torch.ones(1, 1, 16)
    _, found = fold(picture, matrix, ones, None, window, 1e-5)
    _, exact = fold(picture.double(), matrix.double(), ones.double(), None, window, 1e-5)
    assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_third_derivatives_of_a_fold_are_refused() -> None:
    x, weight = noise(2, 3, 1, 5, 4), noise(2, 6, 1, 2, 2, seed=1).requires_grad_()
    product = layers.folded_conv_batch_norm(x, weight, None, None, window_of(2, 1, 0, 1), eps=EPS)
    (first,) = torch.autograd.grad(product.whole().exp().sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives of a folded convolution"):
        torch.autograd.grad((first**2).sum(), weight, create_graph=True)


@pytest.mark.parametrize(("filters", "folds"), [(8, False), (9, True), (20, True)])
def test_the_norm_folds_where_columns_are_fewer_than_filters(filters: int, folds: bool) -> None:
    """And only where x is data: a derivative by x goes through convolution and norm."""
    x, weight = noise(2, 3, 1, 4, 4), noise(2, filters, 1, 3, 3)
    assert layers.can_fold(x, weight) == folds
    assert not layers.can_fold(x.requires_grad_(), weight)


def test_pictures_stay_channels_last_between_layers() -> None:
    """A permuted view of contiguous memory goes in and comes out, with the same values."""
    x = noise(2, 3, 4, 5, 2).movedim(-1, 2)
    window, weight = window_of(3, 1, 1, 1), noise(2, 6, 2, 3, 3)
    for y in (
        layers.conv2d(x, weight, None, window),
        layers.batch_norm(x, None, None, eps=EPS),
        layers.instance_norm(x, None, None, eps=EPS),
    ):
        assert y.movedim(2, -1).is_contiguous() and not y.is_contiguous()
    for function in (layers.group_norm, layers.layer_norm):
        strided, plain = (function(v, 2, None, None, eps=EPS) for v in (x, x.contiguous()))
        torch.testing.assert_close(strided, plain, rtol=1e-12, atol=1e-12)


def test_operands_that_tasks_share_by_expansion() -> None:
    """Strides of zero over the task axis, as at the first inner step."""
    shared = [noise(4, 2, 3, 3, seed=1), noise(4, seed=2), noise(4, seed=3)]
    given = [v[None].expand(3, *v.shape) for v in shared]
    x, window = noise(3, 2, 2, 5, 4), window_of(3, 1, 1, 1)

    def composite(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.batch_norm(F.conv2d(x, w, padding=1), None, None, gamma, beta, True, eps=EPS)

    found = layers.conv_batch_norm(x, *given, window, eps=EPS, leak=1.0)
    torch.testing.assert_close(found, over_loop(composite)(x, *given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_pictures_that_all_tasks_share_give_what_copies_give(bias: bool) -> None:
    """Their columns are made once, in a convolution and in one folded with its norm."""
    x, weight, gamma, beta = (
        noise(*shape, seed=i)
        for i, shape in enumerate([(3, 2, 7, 6), (4, 20, 2, 3, 3), (4, 20), (4, 20)])
    )
    window = window_of(3, 2, 1, 1)
    shared = x.expand(4, *x.shape)

    def plain(pictures: Tensor, weight: Tensor, beta: Tensor) -> Tensor:
        return layers.conv2d(pictures, weight, beta if bias else None, window)

    def folded(pictures: Tensor, weight: Tensor, beta: Tensor) -> Tensor:
        given = (pictures, weight, gamma, beta if bias else None, window)
        product = layers.folded_conv_batch_norm(*given, eps=1e-5)
        return product.whole()

    for function in (plain, folded):
        results = []
        for pictures in (shared, shared.contiguous()):
            inputs = [v.clone().requires_grad_() for v in (weight, beta)]
            y = function(pictures, *inputs)
            grads = torch.autograd.grad(y.sin().sum(), inputs, allow_unused=True)
            results.append([y.detach(), *(g for g in grads if g is not None)])
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
