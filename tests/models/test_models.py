"""Networks: shapes, seeds, what they take and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import functionalize, meta_gradient, sgd
from metalearn.errors import SettingError
from metalearn.models import (
    MLP,
    AveragedEmbeddings,
    Conv4,
    DropBlock,
    Recurrent,
    ResNet12,
    TextTransformer,
    ViT,
    set_draw,
)
from tests.support import oracles

MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "conv4": lambda seed: Conv4((1, 28, 28), 5, filters=8, seed=seed),
    "mlp": lambda seed: MLP((1, 4, 4), 5, seed=seed),
    "smooth mlp": lambda seed: MLP((1, 4, 4), 5, activation="gelu", seed=seed),
    "resnet12": lambda seed: ResNet12((1, 16, 16), 5, filters=4, dropout=0.1, seed=seed),
    "vit": lambda seed: ViT((1, 8, 8), 5, patch=4, width=8, depth=1, seed=seed),
    "gru": lambda seed: Recurrent((4, 3), 5, hidden=6, layers=2, seed=seed),
    "lstm": lambda seed: Recurrent((4, 3), 5, cell="lstm", hidden=6, seed=seed),
    "gru of texts": lambda seed: Recurrent((4,), 5, vocabulary=9, hidden=6, seed=seed),
    "averaged": lambda seed: AveragedEmbeddings((4,), 5, vocabulary=9, width=6, seed=seed),
    "transformer": lambda seed: TextTransformer((4,), 5, vocabulary=9, width=8, seed=seed),
}
OF_TEXTS: dict[str, Callable[..., nn.Module]] = {
    "averaged": partial(AveragedEmbeddings, vocabulary=7, width=4, hidden=[5]),
    "transformer": partial(TextTransformer, vocabulary=7, width=4, depth=2, heads=2),
    "gru": partial(Recurrent, vocabulary=7, hidden=3, layers=2),
    "lstm": partial(Recurrent, vocabulary=7, hidden=3, cell="lstm", embedding=2),
}
"""Networks of texts, for a length and a number of outputs."""
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in module.parameters()])


@makers
def test_same_seed_same_weights(make: Callable[[int], nn.Module]) -> None:
    one = weights(make(3))
    torch.rand(7)
    assert torch.equal(one, weights(make(3)))
    assert not torch.equal(one, weights(make(4)))


@pytest.mark.parametrize(("name", "function"), [("gelu", F.gelu), ("tanh", torch.tanh)])
def test_an_activation_is_all_that_differs(name: Any, function: Any) -> None:
    smooth, plain = (MLP((3,), 2, hidden=(4,), activation=a) for a in (name, "relu"))
    assert torch.equal(weights(smooth), weights(plain))
    x, (first, last) = torch.ones(5, 3), (smooth[1], smooth[3])
    torch.testing.assert_close(smooth(x), last(function(first(x))))


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
            assert layer.bias is None or not layer.bias.any()
            assert float(layer.weight.detach().std()) > 0.01


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


def test_resnet12_is_the_network_of_the_paper() -> None:
    net = ResNet12((3, 84, 84), 5, head=False)
    widths = [3, 64, 160, 320, 640]
    expected = sum(10 * a * b + 18 * b * b + 8 * b for a, b in itertools.pairwise(widths))
    assert weights(net).numel() == expected
    small = ResNet12((3, 35, 52), 5, filters=4, pool="flatten", head=False)
    assert small(torch.ones(2, 3, 35, 52)).shape == (2, 4 * 2 * 3)


@pytest.mark.parametrize("side", [3, 9])
def test_drop_block_drops_squares_within_each_sample(side: int) -> None:
    layer = DropBlock(0.2, size=5, key=3)
    x = torch.ones(200, 4, side, side, dtype=torch.float64)
    set_draw(layer, 1)
    y = layer(x)
    assert torch.equal(y, layer(x)) and torch.equal(layer.eval()(x), x)
    gone = y == 0
    assert 0.1 < gone.double().mean() < 0.25
    assert gone.flatten(2).sum(-1)[gone.flatten(2).any(-1)].min() >= min(side, 5) ** 2
    alive = ~gone.flatten(1).all(1)
    torch.testing.assert_close(y.mean((1, 2, 3))[alive], torch.ones(int(alive.sum())).double())
    set_draw(layer.train(), 2)
    assert not torch.equal(y, layer(x))


def test_attention_of_a_vit_is_that_of_torch() -> None:
    block = ViT((1, 4, 4), 3, patch=2, width=8, depth=1, heads=2).double().blocks[0]
    theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    projected, out = block.queries_keys_values, block.mixed
    theirs.load_state_dict(
        {
            "in_proj_weight": projected.weight, "in_proj_bias": projected.bias,
            "out_proj.weight": out.weight, "out_proj.bias": out.bias,
        }
    )  # fmt: skip
    x = torch.randn(3, 4, 8, generator=oracles.generator(0), dtype=torch.float64)
    ours = out(block.attended(projected(x)))
    torch.testing.assert_close(ours, theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(("cell", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_cells_are_the_fused_layers(cell: Any, kind: Any) -> None:
    net = Recurrent((5, 3), 2, cell=cell, hidden=4, layers=2).double()
    fused = kind(3, 4, 2, batch_first=True).double()
    fused.load_state_dict(
        {
            f"{name}_l{index}": value
            for index, layer in enumerate(net.cells)
            for name, value in layer.state_dict().items()
        }
    )
    x = torch.randn(6, 5, 3, generator=oracles.generator(0), dtype=torch.float64)
    torch.testing.assert_close(net(x), net.head(fused(x)[0][:, -1]))
    pictures = x.unflatten(2, (3, 1)).transpose(1, 2)  # [6, 3, 5, 1]
    torch.testing.assert_close(net(pictures), net(x))


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


@pytest.mark.parametrize("make", OF_TEXTS.values(), ids=OF_TEXTS)
def test_padding_is_of_no_matter_to_networks_of_texts(make: Callable[..., nn.Module]) -> None:
    """A text in five places says what it says in three, and beside others what it says alone."""
    short, long = make((3,), 2).double(), make((5,), 2).double()
    kept = {n: v for n, v in short.state_dict().items() if n != "positions"}
    long.load_state_dict(kept, strict=False)
    if "positions" in short.state_dict():
        long.positions.data[:3] = short.positions.data  # type: ignore[union-attr, operator]
    tokens = torch.tensor([[1, 2, 3], [4, 0, 0], [6, 6, 0]])
    padded = torch.cat([tokens, torch.zeros(3, 2).long()], 1)
    found = long(padded)
    torch.testing.assert_close(found, short(tokens))
    for one, alone in zip(padded, found):
        torch.testing.assert_close(long(one[None])[0], alone)
    assert bool(long(torch.zeros(1, 5).long()).isfinite().all())


def test_averaged_embeddings_are_a_mean_of_vectors() -> None:
    net = AveragedEmbeddings((3,), 2, vocabulary=7, width=4, hidden=[], head=False).double()
    rows = net.embedding.weight
    found = net(torch.tensor([[2, 5, 0], [3, 3, 4]]))
    torch.testing.assert_close(
        found, torch.stack([(rows[2] + rows[5]) / 2, (2 * rows[3] + rows[4]) / 3])
    )


def test_tokens_that_are_read_are_the_vectors_that_they_stand_for() -> None:
    texts = Recurrent((3,), 2, vocabulary=7, hidden=4, embedding=5).double()
    vectors = Recurrent((3, 5), 2, hidden=4).double()
    state = texts.state_dict()
    rows = state.pop("embedding.weight")
    vectors.load_state_dict(state)
    tokens = torch.tensor([[1, 2, 3], [6, 6, 1]])
    torch.testing.assert_close(texts(tokens), vectors(rows[tokens]))


def test_a_transformer_without_padding_is_its_blocks() -> None:
    net = TextTransformer((3,), 2, vocabulary=7, width=4, depth=2, heads=2).double()
    tokens = torch.tensor([[1, 2, 3], [6, 6, 1]])
    states = net.embedding.weight[tokens] + net.positions
    for block in net.blocks:
        states = block(states)
    torch.testing.assert_close(net(tokens), net.head(net.norm(states).mean(1)))


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize("make", OF_TEXTS.values(), ids=OF_TEXTS)
def test_second_order_of_networks_of_texts(make: Callable[..., nn.Module], engine: str) -> None:
    net = make((4,), 3).double()
    case = oracles.classification(net, (4,), samples=6, classes=3)
    draws = oracles.generator(1)
    loss, params, tasks = case

    def texts(pair: Any) -> Any:
        tokens = torch.randint(1, 7, pair[0].shape, generator=draws)
        tokens[..., 2:] *= torch.randint(0, 2, tokens[..., :1].shape, generator=draws)
        return tokens, pair[1]

    given = (loss, params, type(tasks)(texts(tasks.support), texts(tasks.query), tasks.class_ids))
    result = meta_gradient(*given, optimizer=sgd(0.1), steps=2, engine=engine)
    oracles.assert_trees(result.grads, oracles.maml(given, oracles.sgd_rule(0.1), 2)[0], 1e-9)


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (MLP((2,), 3, hidden=(5,)), (2,)),
        (Conv4((1, 8, 8), 3, filters=2), (1, 8, 8)),
        (Conv4((1, 16, 16), 3, filters=2, downsample="max_pool", pool="mean"), (1, 16, 16)),
        (ResNet12((1, 16, 16), 3, filters=2), (1, 16, 16)),
        (ViT((1, 4, 6), 3, patch=2, width=4, depth=2, heads=2), (1, 4, 6)),
        (Recurrent((3, 2), 3, hidden=3, layers=2), (3, 2)),
        (Recurrent((1, 3, 2), 3, cell="lstm", hidden=3), (1, 3, 2)),
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
        (lambda: ResNet12((1, 15, 28), 5), r"^input_shape=\(1, 15, 28\): four poolings need.*16"),
        (lambda: ResNet12((1, 16, 16), 5, filters=[4, 4]), r"^filters=\[4, 4\]: one number or 4"),
        (lambda: ResNet12((1, 16, 16), 5, dropout=1.0), r"^dropout=1.0: a number in \[0, 1\)"),
        (lambda: ViT((1, 28, 28), 5, patch=5), r"^patch=5: a divisor of .* 28 and 28"),
        (lambda: ViT((1, 28, 28), 5, width=6), r"^width=6: a multiple of heads=4"),
        (lambda: ViT((28, 28), 5), r"^input_shape=\(28, 28\): ViT takes pictures"),
        (
            lambda: Recurrent((3, 2), 5, vocabulary=4),
            r"^input_shape=\(3, 2\): Recurrent with a voc",
        ),
        (lambda: Recurrent((3, 2), 5, embedding=4), r"^embedding=4: null is needed where inputs"),
        (lambda: Recurrent((3,), 5, vocabulary=0), r"^vocabulary=0: a whole number of at least 1"),
        (lambda: TextTransformer((3, 2), 5, vocabulary=4), r"^input_shape=\(3, 2\): TextTrans"),
        (lambda: TextTransformer((3,), 5, vocabulary=4, width=6), r"^width=6: a multiple of heads"),
        (lambda: AveragedEmbeddings((3, 2), 5, vocabulary=4), r"^input_shape=.*takes the tokens"),
        (lambda: AveragedEmbeddings((3,), 5, vocabulary=4, hidden=[0]), r"^hidden=0: a whole"),
        (lambda: Recurrent((3,), 5), r"^input_shape=\(3,\): \(length, numbers\)"),
        (lambda: Recurrent((3, 2), 5, cell="rnn"), r"^cell='rnn': one of gru, lstm"),  # type: ignore[arg-type]
        (lambda: Recurrent((3, 2), 5, layers=0), r"^layers=0: a whole number of at least 1"),
        (lambda: DropBlock(0.1, size=0), r"^size=0: a whole number of at least 1"),
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
