"""The batched engine against the plain loop, for modules as people write them, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize, meta_gradient, sgd
from metalearn.core.ops import runs_over_tasks, substituting, task_operations
from metalearn.types import TaskBatch
from tests import oracles
from tests.oracles import Problem, assert_trees

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
PICTURE = (2, 6, 5)
exact_methods = pytest.mark.parametrize("method", ["reverse", "mixed"])


def both(case: Problem, tolerance: float = 1e-10, **settings: Any) -> dict[str, Tensor]:
    """Hold batched against loop; the gradients."""
    settings = {"optimizer": sgd(0.3, momentum=0.5), "steps": 2, **settings}
    batched, loop = (
        meta_gradient(*case, engine=engine, **settings) for engine in ("batched", "loop")
    )
    assert_trees(batched.grads, loop.grads, tolerance)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(batched.query_losses, loop.query_losses, **close)
    torch.testing.assert_close(batched.support_losses, loop.support_losses, **close)
    return batched.grads


def norm(channels: int, **settings: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False, **settings)


def frozen(layer: nn.Module) -> nn.Module:
    """A batch norm in eval mode with statistics that are not 0 and 1."""
    source = oracles.generator(7)
    layer.running_mean.copy_(torch.randn(layer.num_features, generator=source))
    layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=source))
    return layer.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=oracles.generator(3), dtype=torch.float64)


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


# --- modules of layers ------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """A residual block with layers as attributes and a projection beside it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = norm(outputs), norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.beside = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(z)) + self.beside(x))


def head(inputs: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 2)]


def shared() -> list[nn.Module]:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    return [layer, nn.Tanh(), layer, norm(2), *head(2)]


STACKS: dict[str, Callable[[], list[nn.Module]]] = {
    "residual": lambda: [BasicBlock(2, 3, 2), BasicBlock(3, 3, 1), *head(3)],
    "conv_norm_relu": lambda: [
        nn.Conv2d(2, 3, 3, 2, 1), norm(3), nn.ReLU(), nn.Conv2d(3, 3, 2), norm(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(12, 2),
    ],
    "folding": lambda: [nn.Conv2d(2, 9, 2), norm(9), nn.ReLU(), norm(9), nn.Softplus(), *head(9)],
    "norm_alone": lambda: [norm(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.ReLU(), norm(3), *head(3)],
    "no_affine": lambda: [
        nn.Conv2d(2, 3, 3), norm(3, affine=False), nn.Tanh(),
        nn.InstanceNorm2d(3), nn.GroupNorm(3, 3, affine=False), *head(3),
    ],
    "nested": lambda: [
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(norm(3), nn.Identity(), nn.ReLU())),
        nn.Sequential(), nn.Sequential(*head(3)),
    ],
    "pooling": lambda: [
        nn.Conv2d(2, 3, 3, padding=1), norm(3), nn.Softplus(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, padding="same"), nn.GELU(), nn.AvgPool2d((3, 1)), nn.Flatten(),
        nn.Linear(8, 2),
    ],
    "layer_norm": lambda: [
        nn.Conv2d(2, 3, 3), nn.LayerNorm([3, 4, 3]), nn.SiLU(), nn.Flatten(2),
        nn.Linear(12, 4), nn.LayerNorm(4, bias=False), nn.ELU(), nn.Flatten(), nn.Linear(12, 2),
    ],
    "group_norm": lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), *head(4)],
    "instance_norm": lambda: [
        nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.Sigmoid(), *head(3),
    ],
    "vectors": lambda: [
        nn.Flatten(), nn.Linear(60, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(),
        nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2),
    ],
    "signals": lambda: [
        nn.Flatten(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Softplus(),
        nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(60, 2),
    ],
    "frozen_norm": lambda: [nn.Conv2d(2, 3, 3), frozen(nn.BatchNorm2d(3)), nn.Softplus(), *head(3)],
    "grouped": lambda: [nn.Conv2d(2, 4, 3, groups=2), norm(4), nn.Softplus(), *head(4)],
    "circular": lambda: [
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), norm(3), nn.Softplus(), *head(3),
    ],
    "in_place": lambda: [
        nn.Conv2d(2, 3, 3), nn.LeakyReLU(inplace=True), nn.Conv2d(3, 3, 2), nn.ReLU(inplace=True),
        norm(3), nn.SiLU(inplace=True), *head(3),
    ],
    "unknown_layer": lambda: [nn.Conv2d(2, 3, 3), norm(3), nn.Hardtanh(), norm(3), *head(3)],
    "transposed": lambda: [nn.ConvTranspose2d(2, 3, 2), norm(3), nn.Softplus(), *head(3)],
    "shared_layer": shared,
}  # fmt: skip


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


# --- Sequentials: hooks, results that are pairs, refusals, and after use ----------------------


@pytest.mark.parametrize("where", ["0", "1", "2", "3", "3.0", ""])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_hooks_on_layers_are_called(where: str, before: bool) -> None:
    """And what they give counts: the hook scales what it sees."""
    calls: list[type] = []

    def scaling(layer: nn.Module, *given: Any) -> Any:
        calls.append(type(layer))
        return (given[0][0] * 0.7,) if before else given[1] * 0.7

    layers = [nn.Conv2d(2, 3, 3), norm(3), nn.ReLU(), nn.Sequential(nn.Conv2d(3, 3, 2), nn.GELU())]
    module = oracles.draw(nn.Sequential(*layers, *head(3)))
    case = oracles.classification(module, PICTURE)
    plain = both(case)
    layer = module.get_submodule(where)
    register = layer.register_forward_pre_hook if before else layer.register_forward_hook
    handle = register(scaling)
    meta_gradient(*case, optimizer=sgd(0.1), steps=1, engine="batched")
    assert calls == [type(layer)] * 2  # one pass over all support sets, one over all query sets
    hooked = both(case)
    handle.remove()
    assert max(float((hooked[k] - plain[k]).abs().max()) for k in plain) > 1e-6


def test_a_pooling_that_gives_a_pair() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, return_indices=True))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)[0].flatten(1))

    both(oracles.classification(oracles.draw(Net()), PICTURE))


REFUSED: dict[str, tuple[list[nn.Module], str]] = {
    "kernel_above_picture": ([nn.Conv2d(2, 3, (7, 3))], r"[Kk]ernel size"),
    "kernel_far_above_picture": ([nn.Conv2d(2, 3, 9)], r"size"),
    "channels": ([nn.Conv2d(3, 3, 3)], r"size|channels"),
    "channels_of_norm": ([nn.Conv2d(2, 3, 3), norm(1)], r"elements|size|channels"),
    "axes_of_norm": (
        [nn.Conv2d(2, 3, 3), nn.BatchNorm1d(3, track_running_stats=False)],
        r"expected 2D or 3D input",
    ),
    "one_value_a_channel": (
        [nn.Flatten(0), nn.Linear(180, 3), nn.Unflatten(0, (1, 3)),
         nn.BatchNorm1d(3, track_running_stats=False)],
        r"more than 1 value per channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_torch_refuses_is_refused(kind: str, engine: str) -> None:
    layers, message = REFUSED[kind]
    apply, params, buffers = functionalize(oracles.draw(nn.Sequential(*layers)))
    with pytest.raises((RuntimeError, ValueError), match=message):
        meta_gradient(
            lambda p, x: apply(p, buffers, x).sin().mean(), params,
            TaskBatch(*noise(2, 2, 3, *PICTURE)), optimizer=sgd(0.1), steps=1, engine=engine,
        )  # fmt: skip


def sequentials(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Sequential)]


def test_a_sequential_is_unchanged_outside_and_afterwards() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert substituting() and all("forward" in vars(s) for s in sequentials(module))
            raise OSError("from inside")

    inner = nn.Sequential(norm(3), nn.ReLU())
    module = oracles.draw(nn.Sequential(nn.Conv2d(2, 3, 3), inner))
    x = noise(4, *PICTURE)
    expected = module(x)
    both(oracles.classification(nn.Sequential(module, *head(3)).double(), PICTURE))
    assert torch.equal(module(x), expected)
    module.append(Fails())
    with pytest.raises(OSError, match="from inside"):
        both(oracles.classification(module, PICTURE))
    assert not substituting()
    assert len(sequentials(module)) == 2
    assert not any("forward" in vars(layer) for layer in sequentials(module))
    assert torch.equal(module[:2](x), expected)


def test_operations_without_a_task_axis_are_torchs_own() -> None:
    module, x = oracles.draw(nn.Sequential(*STACKS["residual"]())), noise(4, *PICTURE)
    expected = module(x)
    with task_operations():
        with task_operations():
            assert substituting()
        assert substituting()
        with runs_over_tasks(module), runs_over_tasks(module):
            assert torch.equal(module(x), expected)
        apply, params, buffers = functionalize(module)
        assert torch.equal(apply(params, buffers, x), expected)
    assert not substituting()
    assert not any("forward" in vars(layer) for layer in sequentials(module))


def test_a_sequential_with_a_forward_of_its_own_keeps_it() -> None:
    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    module = nn.Sequential(Twice(nn.Conv2d(2, 2, 3, padding=1), norm(2), nn.ReLU()), *head(2))
    both(oracles.classification(oracles.draw(module), PICTURE))


def test_layers_that_work_in_place_leave_the_data_alone() -> None:
    net = nn.Sequential(nn.LeakyReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).double()
    case = oracles.classification(net, (2, 2))
    before = case.tasks.support[0].clone()
    meta_gradient(*case, optimizer=sgd(0.1), steps=1, engine="batched")
    assert torch.equal(case.tasks.support[0], before)
