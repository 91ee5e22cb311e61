"""Forward mode where torch has it wrong or not at all, against rows of plain autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import (
    fisher_operator,
    fisher_vp,
    functionalize,
    ggn_operator,
    ggn_vp,
    hessian,
    hessian_operator,
    hvp,
    jacobian,
    jvp,
    top_eigenvalues,
    vjp,
)
from metalearn.errors import SettingError
from tests.support.derivative_oracles import dense_hessian, dense_jacobian, matches, noise
from tests.support.oracles import draw, generator

INDEX = torch.tensor([[0, 1, 0], [2, 1, 1]])


def stopped(x: Tensor) -> Tensor:
    with torch.no_grad():
        fixed = 3 * x
    return x.sin() * fixed + fixed


def padded(x: Tensor) -> Tensor:
    rows = torch.embedding(x.view(3, 2), INDEX, padding_idx=1)
    return rows.sin() * rows.sum()


def products_of_rows(x: Tensor) -> Tensor:
    rows = torch.ones(2, 2).double().scatter_reduce(0, INDEX[:, :2] % 2, x[:4].view(2, 2), "prod")
    return rows * x[4]


def unpooled(x: Tensor) -> Tensor:
    top, where = F.max_pool1d(x.view(1, 1, 6), 3, 1, return_indices=True)
    return F.max_unpool1d(top, torch.zeros_like(where), 3, 1).square() + x.sum() ** 3


def inverted(x: Tensor) -> Tensor:
    lower = torch.stack([x[:3], x[1:4].sin(), x[3:]]).tril() + 2 * torch.eye(3)
    return torch.cholesky_inverse(lower)


WRONG = {
    "no_grad": stopped,
    "padding row": padded,
    "scatter_reduce": products_of_rows,
}
"""Functions of 6 elements whose tangents torch has wrong in forward mode."""


def other(x: Tensor) -> Tensor:
    return (x.detach() + 1).view(2, 3)


GRID = (noise(1, 4, 4, 2) / 4).tanh()
MISSING: dict[str, Callable[[Tensor], Tensor]] = {
    "cdist": lambda x: torch.cdist(x.view(2, 3), other(x) * 2),
    "pdist": lambda x: F.pdist(x.view(3, 2)),
    "grid_sample": lambda x: F.grid_sample(x.view(1, 1, 2, 3), GRID, align_corners=False),
    "index_reduce": lambda x: x.view(2, 3).index_reduce(0, INDEX[0, :2], other(x), "mean"),
    "segment_reduce": lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([2, 4])),
    "embedding_bag": lambda x: F.embedding_bag(
        INDEX.flatten(), x.view(3, 2), offsets=torch.tensor([0, 2]), mode="sum"
    ),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x.view(2, 3), INDEX[:, 0]),
}
"""Functions of 6 elements of which torch has no tangents in forward mode."""


class OnlyBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class OnlyForward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


def doubled(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """More outputs than inputs: what a Jacobian would take forward mode for."""
    return lambda x: torch.cat([f(x).reshape(-1)] * 7)


def energy(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: (f(x) ** 2).sum() / 2 + f(x).sum()


POINT, ALONG = noise(6).abs() + 0.5, noise(6, seed=1)
REFUSED = "mode='{}': forward mode disagrees with one reverse pass.* mode='{}' gives what autograd"
LACKING = "mode='{}': torch refuses it .* mode='{}' would do"
ASKED = [("forward", "reverse"), ("forward_over_reverse", "reverse_over_reverse")]


@pytest.mark.parametrize("name", WRONG)
def test_where_forward_mode_is_wrong_it_is_not_taken_or_refused(name: str) -> None:
    f = WRONG[name]
    tall, scalar = doubled(f), energy(f)
    dense, curved = dense_jacobian(tall, POINT), dense_hessian(scalar, POINT)
    (first, second), zero = ASKED, torch.zeros(6).double()
    matches(jvp(tall, POINT, ALONG)[1], dense @ ALONG)
    matches(hvp(scalar, POINT, ALONG), curved @ ALONG)
    matches(hessian(scalar)(POINT), curved)
    with pytest.warns(UserWarning, match="forward mode disagrees .* taken in reverse") as told:
        matches((take := jacobian(tall))(POINT), dense)
    assert __file__ in [warning.filename for warning in told]
    matches(take(POINT), dense)  # decided once, and said once
    for run, modes in (
        (lambda: jvp(tall, POINT, ALONG, mode="forward"), first),
        (lambda: jacobian(tall, mode="forward")(POINT), first),
        (lambda: ggn_vp(tall, lambda z: z.exp().sum(), POINT, ALONG, mode="forward"), first),
        (lambda: hvp(scalar, POINT, ALONG, mode="forward_over_reverse"), second),
        (lambda: hessian(scalar, mode="forward")(POINT), first),
    ):
        with pytest.raises(SettingError, match=REFUSED.format(*modes)):
            run()
    matches(jvp(tall, POINT, zero, mode="forward")[1], zero.new_zeros(len(dense)))  # right there


@pytest.mark.parametrize("f", [unpooled, inverted])
def test_second_derivatives_in_forward_mode_are_tested_by_themselves(f: Any) -> None:
    """Torch has first tangents right, the second of one and none of the other."""
    curved = dense_hessian(energy(f), POINT)
    matches(hvp(energy(f), POINT, ALONG), curved @ ALONG, 1e-9)
    matches(hessian(energy(f))(POINT), curved, 1e-9)
    with pytest.raises(SettingError, match="mode='forward_over_reverse'.*mode='reverse_over_reve"):
        hvp(energy(f), POINT, ALONG, mode="forward_over_reverse")


ONCE = ("segment_reduce", "embedding_bag", "multi_margin_loss")  # differentiable


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("name", MISSING)
def test_where_forward_mode_is_missing_the_sentence_names_reverse_mode(name: str) -> None:
    f = MISSING[name]
    tall, scalar = doubled(f), energy(f)
    dense, (first, second) = dense_jacobian(tall, POINT), ASKED
    if name == "cdist":  # torch batches its reverse passes wrongly
        with pytest.warns(UserWarning, match="batched reverse mode .* in one by one mode") as told:
            matches(jacobian(tall)(POINT), dense)
        assert __file__ in [warning.filename for warning in told]
    else:
        matches(jacobian(tall)(POINT), dense)  # and says nothing
    for run in (lambda: jvp(tall, POINT, ALONG)[1], lambda: hvp(scalar, POINT, ALONG)):
        if name in ONCE:
            with pytest.raises(SettingError, match="mode='forward.*' would do if the"):
                run()
    if name not in ONCE:
        matches(jvp(tall, POINT, ALONG)[1], dense @ ALONG)
        matches(hvp(scalar, POINT, ALONG), dense_hessian(scalar, POINT) @ ALONG)
    for run, modes in (
        (lambda: jvp(tall, POINT, ALONG, mode="forward"), first),
        (lambda: jacobian(tall, mode="forward")(POINT), first),
        (lambda: hvp(scalar, POINT, ALONG, mode="forward_over_reverse"), second),
    ):
        with pytest.raises(SettingError, match=LACKING.format(*modes)):
            run()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["mse_loss", "huber_loss", "smooth_l1_loss", "soft_margin_loss"])
def test_losses_of_regression(loss: str, reduction: str) -> None:
    f = lambda x: getattr(F, loss)(x.sin(), ALONG.sign(), reduction=reduction)  # noqa: E731
    exact = dense_hessian(f, POINT) @ ALONG
    matches(hvp(f, POINT, ALONG), exact)
    if loss in ("huber_loss", "soft_margin_loss") or (loss, reduction) == ("mse_loss", "mean"):
        with pytest.raises(SettingError, match=LACKING.format(*ASKED[1])):
            hvp(f, POINT, ALONG, mode="forward_over_reverse")
    else:
        matches(hvp(f, POINT, ALONG, mode="forward_over_reverse"), exact)


def test_operations_with_one_mode_alone() -> None:
    cube = 3 * POINT**2
    matches(jacobian(doubled(OnlyBackward.apply))(POINT)[:6], torch.diag(cube))
    with pytest.raises(SettingError, match=LACKING.format(*ASKED[0])):
        jacobian(OnlyBackward.apply, mode="forward")(POINT)
    matches(jacobian(OnlyForward.apply, mode="forward")(POINT), torch.diag(cube))
    for mode in ("auto", "forward"):
        matches(jvp(OnlyForward.apply, POINT, ALONG, mode=mode)[1], cube * ALONG)  # type: ignore[arg-type]
        matches(jacobian(OnlyForward.apply, mode=mode)(POINT), torch.diag(cube))  # type: ignore[arg-type]
    kinked = F.hardsigmoid  # its gradient has forward mode alone
    matches(jvp(kinked, POINT, ALONG)[1], ALONG * (POINT < 3) / 6, 1e-7)
    given: Any = {"likelihood": "gaussian", "kind": "exact"}
    outputs = lambda p, x: kinked(p)[None] + 0 * x  # noqa: E731
    found = fisher_vp(outputs, POINT, (noise(2, 1), None), ALONG, **given)
    matches(found, ALONG * (POINT < 3) / 36, 1e-7)
    for run in (
        lambda: jvp(OnlyForward.apply, POINT, ALONG, mode="reverse"),
        lambda: jacobian(OnlyForward.apply, mode="reverse")(POINT),
        lambda: vjp(OnlyForward.apply, POINT, ALONG),
    ):
        with pytest.raises(
            SettingError, match="mode='reverse': torch refuses .*'forward' would do"
        ):
            run()


def test_a_random_function_has_the_jacobian_of_one_draw_and_no_forward_mode() -> None:
    noisy = lambda x: F.dropout(torch.cat([x, x]), 0.5)  # noqa: E731
    found = jacobian(noisy)(POINT)
    assert ((found == 0) | (found == 2)).all() and found.count_nonzero() <= 12
    with pytest.raises(SettingError, match="or the function is not deterministic"):
        jvp(noisy, POINT, ALONG, mode="forward")


def test_derivatives_that_are_not_finite_are_no_disagreement() -> None:
    root = lambda x: torch.cat([x.sqrt(), x + 1])  # noqa: E731
    for mode in ("auto", "forward", "reverse"):
        slope = jacobian(root, mode=mode)(torch.zeros(1).double())  # type: ignore[arg-type]
        assert slope[0, 0] == torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_disagreement(dtype: torch.dtype) -> None:
    weight = noise(300, 40, seed=3).to(dtype)
    f = lambda x: torch.softmax(torch.tanh(weight @ x), 0) * (weight @ x).sin()  # noqa: E731
    x = noise(40, seed=4).to(dtype)
    exact = jacobian(f, mode="reverse")(x)
    for mode in ("auto", "forward"):
        found = jacobian(f, mode=mode)(x)  # type: ignore[arg-type]
        torch.testing.assert_close(found, exact, rtol=0.1, atol=float(exact.abs().max()) / 20)


def test_rounding_of_autocast_is_no_disagreement() -> None:
    """Inputs and outputs in float32 and the work in bfloat16: seen by what operations give."""
    weight, x = noise(60, 40, seed=3).float(), noise(40, seed=4).float()

    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(torch.tanh(F.linear(x, weight)), weight.T / 8).float().repeat(2)

    exact = jacobian(f, mode="reverse")(x)
    for mode in ("auto", "forward"):
        found = jacobian(f, mode=mode)(x)  # type: ignore[arg-type]
        torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)
    matches(jvp(f, x, x.cos(), mode="forward")[1], exact @ x.cos(), 0.1)
    scalar = lambda x: f(x).square().sum()  # noqa: E731
    product = hvp(scalar, x, x.cos(), mode="forward_over_reverse")
    matches(product, hvp(scalar, x, x.cos()), 0.1)
    operator = hessian_operator(lambda p, b: scalar(p), x, [x])
    found = top_eigenvalues(operator, x, count=1, iterations=5, generator=generator(0))
    assert found.values.isfinite().all()


def test_errors_of_the_function_itself_pass_as_they_are() -> None:
    def failing(x: Tensor) -> Tensor:
        raise RuntimeError("my own trouble with a derivative")

    for run in (
        lambda: jacobian(failing)(POINT),
        lambda: jacobian(failing, mode="forward")(POINT),
        lambda: jvp(failing, POINT, ALONG),
        lambda: jvp(failing, POINT, ALONG, mode="forward"),
        lambda: hvp(failing, POINT, ALONG),
        lambda: hvp(failing, POINT, ALONG, mode="forward_over_reverse"),
    ):
        with pytest.raises(RuntimeError, match="my own trouble") as caught:
            run()
        assert not isinstance(caught.value, SettingError)


def test_nothing_is_tested_inside_transforms() -> None:
    """Values cannot be read there: what forward mode gives stands, and what it lacks is named."""
    points = torch.stack([POINT, 2 * POINT])
    found = torch.vmap(jacobian(doubled(torch.sin)))(points)
    matches(found[1, :6], torch.diag(torch.cos(2 * POINT)))
    tall = doubled(MISSING["grid_sample"])
    found = torch.vmap(jacobian(tall))(points)
    matches(found[1], dense_jacobian(tall, points[1]))
    pushed = torch.vmap(lambda x: jvp(doubled(stopped), x, ALONG)[1])(points)
    matches(pushed[1], dense_jacobian(doubled(stopped), points[1]) @ ALONG)


# --- operators -------------------------------------------------------------------------------


def wrong_model() -> tuple[Any, dict[str, Tensor], list[Any]]:
    """A model whose output layer ends in a part without gradient."""

    def outputs(params: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = torch.tanh(x @ params["w"])
        return torch.sin(x @ params["w"]) * shift

    batches = [(noise(4, 3, seed=s), torch.arange(4) % 2) for s in range(2)]
    return outputs, {"w": noise(3, 2, seed=7)}, batches


def test_operators_are_those_of_autograd_and_test_forward_mode_when_they_are_made() -> None:
    outputs, params, batches = wrong_model()
    vector = {"w": noise(3, 2, seed=8)}
    x, y = (torch.cat(parts) for parts in zip(*batches))
    z = outputs(params, x)
    rows = dense_jacobian(outputs, params, x=x).view(8, 2, 6)
    p = z.softmax(1)
    curve = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    exact = (rows.mT @ curve @ rows).mean(0) @ vector["w"].reshape(-1)
    loss = lambda p, b: F.cross_entropy(outputs(p, b[0]), b[1])  # noqa: E731
    curved = dense_hessian(lambda p: loss(p, (x, y)), params) @ vector["w"].reshape(-1)
    rule: Any = {"likelihood": "categorical", "kind": "exact"}
    matches(hessian_operator(loss, params, batches)(vector)["w"].reshape(-1), curved)
    for product in (
        ggn_operator(outputs, F.cross_entropy, params, batches),
        fisher_operator(outputs, params, batches, **rule),
        lambda v: fisher_vp(outputs, params, (x, y), v, chunk_size=3, **rule),
    ):
        matches(product(vector)["w"].reshape(-1), exact)
    for make, modes in (
        (lambda: hessian_operator(loss, params, batches, mode=ASKED[1][0]), ASKED[1]),
        (lambda: ggn_operator(outputs, F.cross_entropy, params, batches, mode="forward"), ASKED[0]),
        (lambda: fisher_operator(outputs, params, batches, mode="forward", **rule), ASKED[0]),
        (lambda: fisher_vp(outputs, params, (x, y), vector, mode="forward", **rule), ASKED[0]),
    ):
        with pytest.raises(SettingError, match=REFUSED.format(*modes)):
            make()
    for bad in (
        lambda: ggn_vp(lambda p: p["w"], lambda z: z.sum(), params, vector, mode="back"),  # type: ignore[arg-type]
        lambda: fisher_vp(outputs, params, (x, y), vector, mode="back", **rule),
        lambda: jvp(lambda p: p["w"], params, vector, mode="back"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SettingError, match="mode='back': one of forward, reverse, auto"):
            bad()


def test_both_modes_of_every_operator_agree_where_forward_mode_is_right() -> None:
    apply, params, _ = functionalize(
        draw(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)))
    )
    outputs = lambda p, x: apply(p, {}, x)  # noqa: E731
    batches = [(noise(4, 3, seed=s), torch.arange(4) % 2) for s in range(2)]
    vector = {n: noise(*p.shape, seed=5) for n, p in params.items()}
    loss = lambda p, b: F.cross_entropy(outputs(p, b[0]), b[1])  # noqa: E731
    rule: Any = {"likelihood": "categorical", "kind": "exact"}
    for make, (forward, reverse) in (
        (lambda m: hessian_operator(loss, params, batches, mode=m), ASKED[1]),
        (lambda m: ggn_operator(outputs, F.cross_entropy, params, batches, mode=m), ASKED[0]),
        (lambda m: fisher_operator(outputs, params, batches, mode=m, **rule), ASKED[0]),
    ):
        matches(make(forward)(vector), make(reverse)(vector))
        matches(torch.vmap(make(forward))({n: v[None] for n, v in vector.items()}),
                {n: v[None] for n, v in make(reverse)(vector).items()})  # fmt: skip


# --- norms and attention ---------------------------------------------------------------------

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": lambda x: F.layer_norm(x, [4], ALONG[:4], ALONG[2:], 0.1),
    "layer, torch's": lambda x: torch.layer_norm(x, [4], ALONG[:4], ALONG[2:], 0.1),
    "batch": lambda x: F.batch_norm(x, None, None, ALONG[:4], ALONG[2:], True, eps=0.1),
    "batch, eval": lambda x: F.batch_norm(x, ALONG[:4], POINT[:4], ALONG[:4], ALONG[2:]),
    "batch, torch's": lambda x: torch.batch_norm(
        x, ALONG[:4], ALONG[2:], None, None, True, 0.1, 0.1, False
    ),
    "instance": lambda x: F.instance_norm(x[None], eps=0.1)[0],
    "group": lambda x: F.group_norm(x, 2, ALONG[:4], ALONG[2:], 0.1),
    "rms": lambda x: F.rms_norm(x, [4], ALONG[:4], 0.1),
}
"""Of ``[3, 4]``."""


def by_autograd(f: Callable[[Tensor], Tensor], order: int, t: Tensor) -> Tensor:
    s = t.clone().requires_grad_()
    value = f(s)
    for _ in range(order):
        (value,) = torch.autograd.grad(value, s, create_graph=True)
    return value.detach()


def in_plain_arithmetic(name: str) -> Callable[[Tensor], Tensor]:
    """The same as `NORMS`, written out."""
    kind = name.split(",")[0]

    def norm(x: Tensor) -> Tensor:
        if name == "batch, eval":
            return (x - ALONG[:4]) / (POINT[:4] + 1e-5).sqrt() * ALONG[:4] + ALONG[2:]
        parts = x.view(3, 2, 2) if kind == "group" else x
        axis = 0 if kind == "batch" else -1
        centred = parts if kind == "rms" else parts - parts.mean(axis, keepdim=True)
        y = (centred / (centred.square().mean(axis, keepdim=True) + 0.1).sqrt()).view(3, 4)
        scale = 1 if kind == "instance" else ALONG[:4]
        return y * scale + (0 if kind in ("instance", "rms") else ALONG[2:])

    return norm


@pytest.mark.parametrize("name", NORMS)
def test_nested_tangents_and_third_derivatives_through_norms(name: str) -> None:
    base, way = noise(3, 4, seed=2), noise(3, 4, seed=3)
    t, one = torch.tensor(0.7).double(), torch.ones(()).double()

    def through(norm: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda t: norm(base + (t * way).sin()).exp().sum()

    f, plain = through(NORMS[name]), through(in_plain_arithmetic(name))
    first, second, third = (by_autograd(plain, order, t) for order in (1, 2, 3))
    push: Any = lambda g, **mode: lambda s: jvp(g, s, one, **mode)[1]  # noqa: E731
    for mode in ("forward", "reverse"):
        matches(push(f, mode=mode)(t), first)
        matches(push(push(f, mode=mode), mode=mode)(t), second)
        matches(push(push(push(f, mode=mode), mode=mode), mode=mode)(t), third, 1e-9)
        matches(jacobian(jacobian(f, mode=mode), mode=mode)(t), second)
        matches(jacobian(hessian(f), mode=mode)(t), third, 1e-9)
        matches(hessian(f, mode=mode)(t), second)
        for order in ("forward_over_reverse", "reverse_over_reverse"):
            product = lambda s, order=order: hvp(f, s, one, mode=order)  # noqa: E731
            matches(product(t), second)
            matches(push(product, mode=mode)(t), third, 1e-9)
            matches(jacobian(product, mode=mode)(t), third, 1e-9)
    matches(hessian(push(f))(t), third, 1e-9)
    s = t.clone().requires_grad_()
    matches(torch.autograd.grad(hvp(f, s, one), s)[0], third, 1e-9)


def test_attention_in_evaluation_mode_has_every_mode() -> None:
    """Torch's inference path has no forward mode and is not differentiable."""
    layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(12, 2))
    apply, params, buffers = functionalize(draw(net).eval())
    x, y = noise(3, 3, 4), torch.tensor([0, 1, 0])
    of_input = lambda x: apply(params, buffers, x)  # noqa: E731
    dense = dense_jacobian(of_input, x[:1])
    for mode in ("forward", "reverse", "auto"):
        found = jacobian(of_input, mode=mode)(x[:1])  # type: ignore[arg-type]
        matches(found.reshape(2, 12), dense, 1e-9)
    for mode in ("forward", "reverse"):
        pushed = jvp(of_input, x[:1], x[1:2], mode=mode)[1]  # type: ignore[arg-type]
        matches(pushed.reshape(-1), dense @ x[1].reshape(-1), 1e-9)
    head = {n: p for n, p in params.items() if n.startswith(("2.", "0.layers.0.norm2"))}
    outputs = lambda p, x: apply(params | p, buffers, x)  # noqa: E731
    vector = {n: noise(*p.shape, seed=6) for n, p in head.items()}
    rows = dense_jacobian(outputs, head, x=x).view(3, 2, -1)
    p = outputs(head, x).softmax(1)
    matrix = (rows.mT @ (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ rows).mean(0)
    exact = matrix @ torch.cat([v.reshape(-1) for v in vector.values()])
    for mode in ("forward", "reverse"):
        by_loss = ggn_vp(
            lambda p: outputs(p, x),
            lambda z: F.cross_entropy(z, y),
            head,
            vector,
            mode=mode,  # type: ignore[arg-type]
        )
        by_samples = fisher_vp(
            outputs,
            head,
            (x, y),
            vector,
            likelihood="categorical",
            kind="exact",
            mode=mode,  # type: ignore[arg-type]
        )
        for found in (by_loss, by_samples):
            matches(torch.cat([v.reshape(-1) for v in found.values()]), exact, 1e-9)
