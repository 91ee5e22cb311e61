"""Networks: shapes, seeds, what they take and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import functionalize, meta_gradient, sgd
from metalearn.errors import SettingError
from metalearn.models import MLP, Conv4
from tests.support import oracles

MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "conv4": lambda seed: Conv4((1, 28, 28), 5, filters=8, seed=seed),
    "mlp": lambda seed: MLP((1, 4, 4), 5, seed=seed),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in module.parameters()])


@makers
def test_same_seed_same_weights(make: Callable[[int], nn.Module]) -> None:
    one = weights(make(3))
    torch.rand(7)
    assert torch.equal(one, weights(make(3)))
    assert not torch.equal(one, weights(make(4)))


@makers
def test_construction_leaves_the_global_random_state_alone(
    make: Callable[[int], nn.Module],
) -> None:
    state = torch.get_rng_state()
    make(0)
    assert torch.equal(torch.get_rng_state(), state)


@makers
def test_biases_start_at_zero_and_all_weights_are_drawn(make: Callable[[int], nn.Module]) -> None:
    for layer in make(0).modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            assert not layer.bias.any() and float(layer.weight.detach().std()) > 0.01


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "downsample", "positions"),
    [(28, "stride", 4), (28, "max_pool", 1), (84, "stride", 36), (84, "max_pool", 25)],
)
@pytest.mark.parametrize("pool", ["flatten", "mean"])
def test_conv4_shapes(channels: int, size: int, downsample: Any, positions: int, pool: Any) -> None:
    net = Conv4((channels, size, size), 5, filters=4, downsample=downsample, pool=pool)
    assert net(torch.ones(2, channels, size, size)).shape == (2, 5)
    assert net.head.in_features == 4 * (positions if pool == "flatten" else 1)


def test_conv4_takes_pictures_that_are_not_square() -> None:
    assert Conv4((1, 20, 33), 3, filters=4)(torch.ones(2, 1, 20, 33)).shape == (2, 3)
    net = Conv4((1, 20, 33), 3, filters=4, downsample="max_pool")
    assert net(torch.ones(2, 1, 20, 33)).shape == (2, 3)


def test_conv4_is_the_network_of_the_papers() -> None:
    omniglot = Conv4((1, 28, 28), 5, downsample="stride", pool="mean")
    imagenet = Conv4((3, 84, 84), 5, filters=32, downsample="max_pool", pool="flatten")
    assert weights(omniglot).numel() == (9 * 64 + 192) + 3 * (9 * 64 * 64 + 192) + 64 * 5 + 5
    assert weights(imagenet).numel() == (9 * 3 * 32 + 96) + 3 * (9 * 32 * 32 + 96) + 800 * 5 + 5
    assert dict(omniglot.named_buffers()) == {}


@pytest.mark.parametrize("pool", ["mean", "flatten"])
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
@pytest.mark.parametrize("halvings", [1, 3, 4])
def test_conv4_without_a_head_gives_features(halvings: int, downsample: Any, pool: Any) -> None:
    settings: dict[str, Any] = {"downsample": downsample, "pool": pool, "halvings": halvings}
    widths = [2, 3, 4, 6]
    net = Conv4((1, 17, 20), 5, filters=widths, head=False, **settings)
    side = [17, 20]
    for _ in range(halvings):
        side = [(s + (downsample == "stride")) // 2 for s in side]
    features = 6 * (side[0] * side[1] if pool == "flatten" else 1)
    x = torch.rand(3, 1, 17, 20, generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (3, features)
    assert [layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)] == widths
    whole = Conv4((1, 17, 20), 5, filters=widths, **settings)
    torch.testing.assert_close(whole(x), whole.head(whole.gather(whole.blocks(x))), rtol=0, atol=0)
    whole.blocks.load_state_dict(net.blocks.state_dict())
    torch.testing.assert_close(whole.gather(whole.blocks(x)), net(x), rtol=0, atol=0)


def test_normalisation_is_that_of_the_batch_in_both_modes() -> None:
    net = Conv4((1, 28, 28), 5, filters=4)
    x = torch.randn(6, 1, 28, 28, generator=oracles.generator(0))
    torch.testing.assert_close(net.train()(x), net.eval()(x))
    assert not torch.allclose(net(x)[:2], net(x[:2]), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "hidden", "layers"), [((1,), (40, 40), 3), ((2, 3), (), 1), ((4,), (7,), 2)]
)
def test_mlp_shapes(shape: tuple[int, ...], hidden: tuple[int, ...], layers: int) -> None:
    net = MLP(shape, 2, hidden=hidden)
    assert net(torch.ones(3, *shape)).shape == (3, 2)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert len(linear) == layers and tuple(layer.out_features for layer in linear[:-1]) == hidden
    assert isinstance(net[-1], nn.Linear)


def test_scale_and_biases_of_an_mlp_are_those_of_its_hidden_layers() -> None:
    plain, scaled = (MLP((50,), 20, hidden=(400, 30), init_scale=s, seed=3) for s in (1.0, 2.5))
    for index in (1, 3):
        torch.testing.assert_close(scaled[index].weight, 2.5 * plain[index].weight)
    torch.testing.assert_close(scaled[5].weight, plain[5].weight)
    biased = MLP((50,), 20, hidden=(400, 30), init_bias=0.7, seed=3)
    assert biased[1].bias.std().item() == pytest.approx(0.7, rel=0.1)
    assert not biased[5].bias.any()


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (MLP((2,), 3, hidden=(5,)), (2,)),
        (Conv4((1, 8, 8), 3, filters=2), (1, 8, 8)),
        (Conv4((1, 16, 16), 3, filters=2, downsample="max_pool", pool="mean"), (1, 16, 16)),
    ],
)
def test_second_order_equals_plain_maml(
    net: nn.Module, shape: tuple[int, ...], engine: str
) -> None:
    case = oracles.classification(net.double(), shape, samples=6, classes=3)
    result = meta_gradient(*case, optimizer=sgd(0.1), steps=2, engine=engine)
    expected = oracles.maml(case, oracles.sgd_rule(0.1), 2)[0]
    oracles.assert_trees(result.grads, expected, 1e-9)
    assert functionalize(net)[2] == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv4((28, 28), 5), r"^input_shape=\(28, 28\): .*\(channels, height, width\)"),
        (lambda: Conv4((1, 28, 28), 5, downsample="max"), r"^downsample='max': one of stride, m"),
        (lambda: Conv4((1, 28, 28), 5, pool="max"), r"^pool='max': one of flatten, mean"),
        (lambda: Conv4((1, 28, 28), 5, filters=0), r"^filters=0: a whole number of at least 1"),
        (lambda: Conv4((1, 28, 28), 5, filters=[4, 4, 0, 4]), r"^filters=0: a whole number of at"),
        (lambda: Conv4((1, 28, 28), 5, filters=[4, 4]), r"^filters=\[4, 4\]: one number or 4 are"),
        (
            lambda: Conv4((1, 28, 28), 5, halvings=5),
            r"^halvings=5: a whole number of at most 4",
        ),
        (
            lambda: Conv4((1, 7, 9), 5, downsample="max_pool", halvings=3),
            "^input_shape=.*3 pool.*8",
        ),
        (lambda: Conv4((1, 15, 28), 5, downsample="max_pool"), r"^input_shape=\(1, 15, 28\): .*16"),
        (lambda: Conv4((0, 28, 28), 5), r"^input_shape=.*at least 1"),
        (lambda: Conv4((1, 0, 28), 5), r"^input_shape=.*at least 1"),
        (lambda: Conv4((1, 28, 28), 0), r"^outputs=0: a whole number of at least 1"),
        (lambda: MLP((2,), 3, hidden=(40, 0)), r"^hidden=0: a whole number of at least 1"),
        (lambda: MLP((0,), 3), r"^input_shape=0: a whole number of at least 1"),
        (lambda: MLP((2,), 0), r"^outputs=0: a whole number of at least 1"),
        (lambda: MLP((2,), -1), r"^outputs=-1: a whole number of at least 1"),
        (lambda: MLP((2,), 3, init_scale=0.0), r"^init_scale=0.0: a finite number above 0"),
        (lambda: MLP((2,), 3, init_bias=-1.0), r"^init_bias=-1.0: a finite number of at least 0"),
    ],
)
def test_sizes_out_of_range_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
