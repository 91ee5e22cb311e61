"""The batched engine against the plain loop, for modules as people write them, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize, meta_gradient, sgd, tree
from metalearn.core.meta.engines import over_tasks
from metalearn.core.meta.task_axis import stacked_over_tasks
from metalearn.core.ops import substitution
from metalearn.core.ops.decomposed_norms import decomposed_norms
from metalearn.types import TaskBatch
from tests.support import oracles
from tests.support.layer_cases import PICTURE, STACKS, both, exact_methods, noise
from tests.support.oracles import Problem, assert_trees

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
# --- modules that call torch's functions ------------------------------------------------------


class Functions(nn.Module):
    """Parameters of its own and functions of `torch.nn.functional`, called in every style."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.kernel, self.shift = nn.Parameter(torch.ones(4, 2, 3, 2)), nn.Parameter(torch.ones(4))
        self.gamma, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(x, self.kernel, self.shift, (2, 1), padding=(1, 0))
        if self.kind == "batch_norm":
            z = F.batch_norm(z, None, None, self.gamma, bias=self.beta, training=True, eps=1e-3)
        elif self.kind == "batch_norm_plain":
            z = F.batch_norm(z, None, None, training=True)
        elif self.kind == "frozen_batch_norm":
            mean, var = x.new_tensor([0.1, -0.2, 0.3, 0.0]), x.new_tensor([0.5, 1.0, 2.0, 1.5])
            z = F.batch_norm(z, mean, var, self.gamma, self.beta)
        elif self.kind == "instance_norm":
            z = F.instance_norm(z, weight=self.gamma, bias=self.beta)
        elif self.kind == "group_norm":
            z = F.group_norm(z, 2, self.gamma, self.beta, 1e-3)
        elif self.kind == "layer_norm":
            z = F.layer_norm(z.movedim(1, -1), (4,), self.gamma, self.beta).movedim(-1, 1)
        elif self.kind == "layer_norm_wide":
            z = F.layer_norm(z, z.shape[1:]) * self.gamma[:, None, None]
        elif self.kind == "same_padding":
            z = F.conv2d(F.gelu(z), self.kernel.mT @ self.kernel, padding="same", dilation=2)
        elif self.kind == "torch_conv2d":
            z = torch.conv2d(z, self.kernel.repeat(1, 2, 1, 1), stride=2)
        elif self.kind == "one_picture":
            z = torch.stack([F.conv2d(one, self.kernel, padding=1) for one in x])
        return self.head(F.softplus(z).mean((-2, -1)))


FUNCTIONS = ("conv2d", "batch_norm", "batch_norm_plain", "frozen_batch_norm", "instance_norm")
FUNCTIONS += ("group_norm", "layer_norm", "layer_norm_wide", "same_padding", "torch_conv2d")
FUNCTIONS += ("one_picture",)


@exact_methods
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_of_torch(kind: str, method: str) -> None:
    if kind == "same_padding":
        module = Functions(kind)
        module.kernel = nn.Parameter(torch.ones(4, 4, 3, 2))
        picture: tuple[int, ...] = (4, 6, 5)
    else:
        module, picture = Functions(kind), PICTURE
    case = oracles.classification(oracles.draw(module), picture, tasks=3)
    grads = both(case, method=method)
    assert float(grads["kernel"].abs().max()) > 1e-6


class Linear(nn.Module):
    """Linear maps of one, two and three axes, with a bias and without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
        self.register_buffer("fixed", torch.eye(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        three = torch.stack([x, x.sin()], 1)
        h = self.first(three).tanh().sum(1) + torch.stack([self.first(one) for one in x])
        return self.last(F.linear(F.softplus(self.first(x) + h), self.fixed, self.first.bias))


@exact_methods
@pytest.mark.parametrize(
    ("much", "large"), [(0, 0), (2**21, 0), (2**21, 2**14)], ids=["much", "large", "small"]
)
def test_linear_maps(much: int, large: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substitution, "_MUCH", much)
    monkeypatch.setattr(substitution, "_LARGE", large)
    case = oracles.classification(oracles.draw(Linear()), (3,), tasks=3)
    both(case, method=method)


@pytest.mark.parametrize(
    ("samples", "width", "outputs"), [(1, 128, 128), (3, 128, 128), (99, 2048, 7)]
)
def test_the_gradient_of_a_large_linear_map_has_the_layout_of_its_weight(
    samples: int, width: int, outputs: int
) -> None:
    weight = torch.randn(2, outputs, width, generator=oracles.generator(0)).requires_grad_()
    with substitution.task_operations():
        y = torch.vmap(F.linear)(torch.ones(2, samples, width), weight)
    (grad,) = torch.autograd.grad(y.sum(), [weight])
    assert grad.is_contiguous()


class Views(nn.Module):
    """Shapes as people write them: ``view`` after a pooled picture and after a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.last = nn.Conv2d(2, 3, 3), nn.Linear(12, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = F.max_pool2d(F.softplus(self.conv(F.pad(x, (1, 1, 1, 0)))), 2)
        h = torch.tanh(self.wide(z.view(x.size(0), -1)[:, :12]))
        return self.last(h.view(-1, 4).view(len(x), 2, 4).sum(1)).view((len(x), 2))


@exact_methods
def test_views_of_pictures_and_products(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(substitution, "_LARGE", 0)
    both(oracles.classification(oracles.draw(Views()), PICTURE, tasks=3), method=method)


def test_a_view_that_does_not_fit_is_refused() -> None:
    with substitution.task_operations(), pytest.raises(RuntimeError, match="invalid for input"):
        torch.vmap(lambda x: x.mT.view(5, 5))(torch.ones(2, 3, 4))


NORMS = {
    "batch": (nn.BatchNorm1d, {"track_running_stats": False}),
    "instance": (nn.InstanceNorm1d, {"affine": True}),
    "layer": (lambda size: nn.LayerNorm([size, 4]), {}),
    "group": (lambda size: nn.GroupNorm(3, size), {}),
}


@pytest.mark.parametrize("wrt", ["params", "data"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["reverse", "mixed", "first_order", "implicit"])
def test_a_loss_that_takes_gradients_itself(method: str, norm: str, wrt: str) -> None:
    """Every engine against a loop whose norms are plain arithmetic."""
    make, settings = NORMS[norm]
    module = oracles.draw(
        nn.Sequential(nn.Conv1d(2, 6, 1), make(6, **settings), nn.Tanh(), nn.Flatten(),
                      nn.Linear(24, 2))
    )  # fmt: skip
    case = oracles.classification(module, (2, 4), tasks=3)
    apply, _, buffers = functionalize(module)

    def penalised(params: Any, batch: Any) -> Tensor:
        def size(params: Any, x: Tensor) -> Tensor:
            return apply(params, buffers, x).square().mean()

        slopes = torch.func.grad(size, argnums=("params", "data").index(wrt))(params, batch[0])
        penalty = sum(v.square().sum() for v in tree.leaves(slopes))
        return case.loss_fn(params, batch) + 0.3 * penalty

    def plain(params: Any, batch: Any) -> Tensor:
        with decomposed_norms(True):
            return penalised(params, batch)

    settings = {"optimizer": sgd(0.1), "steps": 2, "method": method}
    expected = meta_gradient(plain, *case[1:], engine="loop", **settings)
    for engine in ("batched", "vmap", "loop"):
        actual = meta_gradient(penalised, *case[1:], engine=engine, **settings)
        assert_trees(actual.grads, expected.grads, 1e-9)


def _window(x: Tensor, w: Tensor, **settings: Any) -> Tensor:
    return F.conv2d(x, w[:8, None, None, None].expand(8, 6, 2, 2), **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: F.layer_norm(x, [w.shape[0]], w, w), "normalized_shape"),
        (lambda x, w: F.group_norm(x, 4, w[:1].expand(6), None), "divisible"),
        (lambda x, w: F.group_norm(x, 3, w[:1], None), "vector of size"),
        (lambda x, w: F.batch_norm(x, None, None, None, w[:1], training=True), "bias should"),
        (lambda x, w: F.instance_norm(x, weight=w[:1]), "weight"),
        (lambda x, w: F.conv2d(x, w[:1].expand(2, 6, 1, 1), stride=2, padding="same"), "strided"),
        *((partial(_window, **bad), "negative padding|non-positive|dilation should") for bad in (
            {"padding": -1}, {"padding": (0, -1)}, {"stride": 0}, {"stride": (1, -1)},
            {"dilation": 0}, {"dilation": (-1, 1)})),
    ],
    ids=["layer", "group", "group_weight", "batch_bias", "instance_weight", "same_strided",
         "padding", "padding_across", "stride", "stride_across", "dilation", "dilation_down"],
)  # fmt: skip
def test_shapes_that_torch_refuses_are_refused(call: Any, message: str) -> None:
    data, weights = noise(2, 3, 6, 4, 4), noise(2, 10)
    with pytest.raises((RuntimeError, ValueError), match=message):
        call(data[0], weights[0])
    with substitution.task_operations(), pytest.raises((RuntimeError, ValueError), match=message):
        torch.vmap(call)(data, weights)


# --- modules of layers ------------------------------------------------------------------------


@exact_methods
@pytest.mark.parametrize("stack", STACKS)
def test_modules_of_layers(stack: str, method: str) -> None:
    module = oracles.draw(nn.Sequential(*STACKS[stack]()))
    both(oracles.classification(module, PICTURE, tasks=3), method=method)


@pytest.mark.parametrize("stack", ["residual", "conv_norm_relu", "layer_norm", "frozen_norm"])
@pytest.mark.parametrize("settings", [{"method": "first_order"}, {"frozen": "0.*"}], ids=str)
def test_modules_of_layers_with_fewer_derivatives(stack: str, settings: dict[str, Any]) -> None:
    module = oracles.draw(nn.Sequential(*STACKS[stack]()))
    both(oracles.classification(module, PICTURE, tasks=3), **settings)


@exact_methods
def test_the_bias_of_a_convolution_before_a_norm_has_a_gradient_of_zero(method: str) -> None:
    """The norm takes the bias away with the mean: zero exactly, not to rounding."""
    for stack in ("conv_norm_relu", "folding"):
        module = oracles.draw(nn.Sequential(*STACKS[stack]()))
        grads = both(oracles.classification(module, PICTURE), method=method)
        assert torch.equal(grads["0.bias"], torch.zeros_like(grads["0.bias"]))
        assert float(grads["0.weight"].abs().max()) > 1e-6


@pytest.mark.parametrize("stack", ["conv_norm_relu", "vectors", "group_norm"])
def test_a_parameter_that_no_task_changes(stack: str) -> None:
    """Weights that stand among the buffers have no task axis."""
    module = oracles.draw(nn.Sequential(*STACKS[stack]()))
    for name, value in module.named_parameters():
        value.requires_grad_(not name.startswith(("0.", "1.")))
    both(oracles.classification(module, PICTURE, tasks=3))


@pytest.mark.parametrize("tasks", [1, 2])
def test_one_task_is_a_batch_too(tasks: int) -> None:
    both(oracles.classification(oracles.draw(nn.Sequential(*STACKS["residual"]())), PICTURE,
                                tasks=tasks, samples=2))  # fmt: skip


# --- inside the loss --------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["residual", "conv_norm_relu", "layer_norm", "circular"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_vmap_inside_the_loss(stack: str, depth: int) -> None:
    """Over shifted copies of a batch, which share the parameters of the task."""
    module = oracles.draw(nn.Sequential(*STACKS[stack]()))
    case, (apply, params, buffers) = oracles.classification(module, PICTURE), functionalize(module)
    shifts = torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64)

    def loss_fn(params: Any, batch: Any) -> Tensor:
        def one(*shift: Tensor) -> Tensor:
            return F.cross_entropy(apply(params, buffers, batch[0] + sum(shift)), batch[1])

        mapped = torch.func.vmap(one, in_dims=(0,) + (None,) * (depth - 1))
        if depth == 2:
            mapped = torch.func.vmap(mapped, in_dims=(None, 0))
        return mapped(*[shifts] * depth).mean()

    both(Problem(loss_fn, params, case.tasks))


def test_a_vmap_inside_the_loss_over_members_with_their_own_parameters() -> None:
    apply, params, buffers = functionalize(oracles.draw(nn.Sequential(*STACKS["conv_norm_relu"]())))
    members = {name: torch.stack([v, 0.5 * v, -v]) for name, v in params.items()}

    def loss_fn(params: Any, batch: Any) -> Tensor:
        logits = torch.func.vmap(lambda p: apply(p, buffers, batch[0]))(params)
        return F.cross_entropy(logits.flatten(0, 1), batch[1].repeat(3))

    case = oracles.classification(nn.Sequential(*STACKS["conv_norm_relu"]()).double(), PICTURE)
    both(Problem(loss_fn, members, case.tasks))


def test_single_pictures_inside_the_loss() -> None:
    """A layer takes a picture without a sample axis too, as under a vmap over samples."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3)
            self.rest = nn.Sequential(nn.InstanceNorm2d(4), nn.Softplus(), nn.Conv2d(4, 3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.first(x))

    for module in (Net(), nn.Sequential(*Net().children()), nn.Sequential(nn.Conv2d(2, 3, 3))):
        apply, params, buffers = functionalize(oracles.draw(module))

        def loss_fn(params: Any, x: Tensor, apply: Any = apply, buffers: Any = buffers) -> Tensor:
            ramp = torch.arange(1.0, 4, dtype=x.dtype)[:, None, None]
            return torch.func.vmap(lambda one: (ramp * apply(params, buffers, one)).sin().mean())(
                x
            ).mean()

        both(Problem(loss_fn, params, TaskBatch(*noise(2, 2, 3, *PICTURE))))


def test_a_single_picture_through_an_instance_norm_of_a_sequential() -> None:
    apply, params, buffers = functionalize(
        oracles.draw(nn.Sequential(nn.Sequential(nn.InstanceNorm2d(2), nn.Softplus())).append(
            nn.Linear(5, 2)
        ))
    )  # fmt: skip

    def loss_fn(params: Any, x: Tensor) -> Tensor:
        return apply(params, buffers, x[0]).sin().mean()

    both(Problem(loss_fn, params, TaskBatch(*noise(2, 2, 3, *PICTURE))))


def test_layer_functions_of_constants_under_a_vmap_inside_the_loss() -> None:
    """The inner vmap batches the kernels, and nothing there belongs to a task."""
    kernels, pictures = noise(3, 4, 2, 3, 3), noise(2, *PICTURE)

    def loss_fn(w: Tensor, x: Tensor) -> Tensor:
        maps = torch.func.vmap(lambda kernel: F.conv2d(pictures, kernel).mean())(kernels)
        return (w * maps.sum() * x.mean()).sin()

    theta = {"w": torch.tensor(0.3, dtype=torch.float64)}
    both(Problem(lambda p, x: loss_fn(p["w"], x), theta, TaskBatch(*noise(2, 2, 3))))


def test_gradients_of_its_own_within_a_task_meet_torchs_layout() -> None:
    """Weights are channels-last for the engine; torch's own layers are not to hear of it."""
    norm = partial(nn.BatchNorm2d, 3, track_running_stats=False)
    blocks: list[nn.Module] = []
    for channels in (1, 3, 3, 3):
        blocks += [nn.Conv2d(channels, 3, 3, stride=2, padding=1), norm(), nn.ReLU()]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    apply, params, buffers = functionalize(net.double())

    def within(params: Any, support: Any, query: Any) -> Tensor:
        def loss(params: Any, batch: Any) -> Tensor:
            return F.cross_entropy(apply(params, buffers, batch[0]), batch[1])

        for _ in range(2):
            slope = torch.func.grad(loss)(params, support)
            params = {name: p - 0.1 * slope[name] for name, p in params.items()}
        return loss(params, query)

    x, y = noise(2, 4, 1, 4, 4), torch.arange(4).remainder(2).expand(2, 4)
    tasks = TaskBatch((x, y), (x + 0.1, y))
    found = over_tasks(within)(stacked_over_tasks(params, tasks), *tasks)
    alone = [within(params, (x[t], y[t]), (x[t] + 0.1, y[t])) for t in range(2)]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-10, atol=1e-12)
