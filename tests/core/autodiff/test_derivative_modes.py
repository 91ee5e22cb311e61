"""Which mode a Jacobian takes; single elements, empty outputs and bad inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn.core import hessian, jacobian, jacobian_mode
from metalearn.errors import SettingError
from tests.support.derivative_oracles import matches, noise

MODES: Any = ["forward", "reverse"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [(16, 16, "reverse"), (2048, 32, "reverse"), (32, 2048, "forward"), (1, 2, "forward")],
)
def test_the_mode_is_chosen_by_shape(inputs: int, outputs: int, expected: str) -> None:
    """Which mode ran is seen by a function that has its own rule for each."""

    class Marked(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            ran.add("reverse")
            return 2 * grad

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            ran.add("forward")
            return 2 * tangent

    weight, x = noise(outputs, inputs).float(), noise(inputs, seed=1).float()
    f = lambda x, weight: torch.tanh(weight @ Marked.apply(x))  # noqa: E731
    assert jacobian_mode(f, (x, weight)) == expected
    assert jacobian_mode(f, [x], weight=weight) == expected
    closed = (1 - torch.tanh(weight @ (2 * x)) ** 2)[:, None] * weight * 2
    for mode, wanted in [("auto", expected), ("forward", "forward"), ("reverse", "reverse")]:
        ran: set[str] = set()
        take = jacobian(f, mode=mode)  # type: ignore[arg-type]
        matches(take(x, weight), closed, 1e-5)
        assert ran == {wanted, "reverse"}  # forward mode is tested by a reverse pass, once
        ran.clear()
        matches(take(x, weight), closed, 1e-5)
        assert ran == {wanted}


def test_the_mode_counts_all_leaves_of_the_chosen_arguments() -> None:
    f = lambda tree, shift: [tree["a"].outer(shift), tree["b"]]  # noqa: E731
    args = ({"a": noise(2), "b": noise(3)}, noise(4))  # 11 outputs; 5, 4 and 9 inputs
    assert jacobian_mode(f, args) == "forward"
    assert jacobian_mode(f, args, (0, 1)) == "forward"
    assert jacobian_mode(f, (args[0], noise(1)), (0, 1)) == "reverse"  # 5 outputs, 6 inputs
    assert jacobian_mode(f, (args[0], noise(1)), 1) == "forward"


# --- edges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", *MODES])
def test_scalars_single_elements_constants_and_empty_outputs(mode: Any) -> None:
    x = noise(1, 1)
    matches(jacobian(torch.sin, mode=mode)(x), x.cos().reshape(1, 1, 1, 1))
    matches(hessian(torch.sin, mode=mode)(x), -x.sin().reshape((1,) * 6))
    matches(jacobian(lambda x: torch.ones(2).double(), mode=mode)(x), torch.zeros(2, 1, 1).to(x))
    matches(hessian(lambda x: torch.ones(()).double(), mode=mode)(x), torch.zeros(1, 1, 1, 1).to(x))
    assert jacobian(lambda x: x[:0], mode=mode)(noise(3)).shape == (0, 3)
    assert jacobian(torch.sin, mode=mode)(noise(0)).shape == (0, 0)
    assert jacobian(lambda x: x.sum(), mode=mode)(noise(0)).shape == (0,)


@pytest.mark.parametrize("take", [jacobian, hessian])
def test_bad_inputs(take: Any) -> None:
    x = noise(2)
    with pytest.raises(SettingError, match="mode='back': one of auto, forward, reverse is needed"):
        take(torch.sin, mode="back")
    with pytest.raises(SettingError, match="chunk_size=0: a whole number of at least 1 is needed"):
        take(torch.sin, chunk_size=0)
    for argnums in (1, -2, True, "0", 0.0, (0, 1), None):
        with pytest.raises(SettingError, match="argnums=.*: f got 1 positional arguments"):
            take(torch.sin, argnums)(x)
    for argnums in ((), (0, 0), (0, 1, -2)):
        with pytest.raises(SettingError, match="argnums=.*: at least one argument is needed, and"):
            take(torch.mul, argnums)(x, x)
    with pytest.raises(SettingError, match=r"args\[0\]=torch.int64: a floating-point tensor"):
        take(torch.sin)(torch.arange(2))
    with pytest.raises(SettingError, match=r"args\[0\]\[a.1\]='float': a floating-point tensor"):
        take(lambda tree: tree["a"][0])({"a": [x, 1.0]})
    with pytest.raises(SettingError, match=r"args\[0\]={}: a tree with at least one tensor"):
        take(lambda tree: x)({})
    for mode in MODES:
        with pytest.raises(SettingError, match=r"f\(\*args\)\[1\]=torch.bool: a floating-point"):
            take(lambda x: (x, x > 0), mode=mode)(x)
        with pytest.raises(SettingError, match=r"f\(\*args\)='float': a floating-point tensor"):
            take(lambda x: 1.0, mode=mode)(x)
    with pytest.raises(SettingError, match=r"f\(\*args\)=torch.int64: a floating-point tensor"):
        jacobian_mode(lambda x: x.long(), (x,))
    with pytest.raises(SettingError, match="argnums=2: f got 1 positional arguments"):
        jacobian_mode(torch.sin, (x,), 2)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 3)])
@pytest.mark.parametrize("around", ["vmap", "jvp", "jacobian"])
def test_auto_does_not_change_the_answer_with_the_shapes_inside_transforms(
    around: str, shape: tuple[int, int]
) -> None:
    """Forward mode passes over ``no_grad``, and inside transforms no test can tell."""
    matrix, x = noise(*reversed(shape)), noise(shape[0])

    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = matrix @ x.square()
        return matrix @ x * scale

    expected = matrix * (matrix @ x.square())[:, None]
    if around == "vmap":
        found = torch.func.vmap(jacobian(f))(torch.stack([x, 2 * x]))[0]
    elif around == "jvp":
        found = torch.func.jvp(jacobian(f), (x,), (x,))[0]
    else:
        rows = jacobian(lambda x: (jacobian(f)(x), x.sum()), mode="reverse")(x)[1]
        assert rows.shape == x.shape
        found = torch.func.vjp(jacobian(f), x)[0]
    torch.testing.assert_close(found, expected)
