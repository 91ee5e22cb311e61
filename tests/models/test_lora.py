"""Low-rank adapters: where they start, what trains, and their gradients in every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn.core import Engine, functionalize, meta_gradient, per_sample_gradients, sgd
from metalearn.errors import SettingError
from metalearn.models import (
    MLP,
    Conv4,
    Ensemble,
    LowRank,
    ResNet12,
    ViT,
    load_weights,
    with_lora,
)
from metalearn.trainers import ANIL, CAVIA, MetaLearner, ProtoNet, Reptile
from metalearn.types import TaskBatch
from tests.support import oracles

NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mlp": (MLP((4,), 3, hidden=(6, 5)), (4,)),
    "conv4": (Conv4((1, 16, 16), 3, filters=3), (1, 16, 16)),
    "resnet12": (ResNet12((1, 16, 16), 3, filters=2), (1, 16, 16)),
    "vit": (ViT((1, 8, 8), 3, patch=4, width=6, depth=1, heads=2), (1, 8, 8)),
}
networks = pytest.mark.parametrize(("network", "shape"), NETWORKS.values(), ids=NETWORKS)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(net: nn.Module) -> nn.Module:
    """With B no longer zero."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, LowRank):
                layer.up.weight.copy_(torch.randn(layer.up.weight.shape, generator=source))
    return net


@networks
def test_adapters_start_as_the_network_and_the_head_trains_with_them(
    network: nn.Module, shape: tuple[int, ...]
) -> None:
    net = with_lora(network, 2).double()
    x = noise(3, *shape)
    torch.testing.assert_close(net(x), network.double()(x))
    network.float()
    trained = {name for name, value in net.named_parameters() if value.requires_grad}
    adapters = {name for name in trained if ".down." in name or ".up." in name}
    head = {name.rpartition(".")[0] for name in trained - adapters}
    assert adapters and len(head) == 1
    assert all(value.requires_grad for value in network.parameters())
    same = dict(with_lora(network, 2).double().named_parameters())
    assert all(torch.equal(value, same[name]) for name, value in net.named_parameters())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Linear(4, 3, bias=False), (2, 4)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 7, 7)),
        (nn.Conv2d(2, 3, (1, 3), dilation=2, padding="same", padding_mode="reflect"), (2, 7, 7)),
    ],
    ids=["linear", "sequence", "conv", "dilated"],
)
def test_an_adapter_is_a_weight_of_low_rank(layer: Any, shape: tuple[int, ...]) -> None:
    low = LowRank(layer.double(), 2, 6.0, torch.Generator().manual_seed(0))
    moved(nn.Sequential(low))
    b, a = low.up.weight.flatten(1), low.down.weight.flatten(1)
    x = noise(5, *shape)
    found = low(x)
    layer.weight += 3.0 * (b @ a).view_as(layer.weight).detach()
    torch.testing.assert_close(found, layer(x))


@networks
@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_meta_gradients(network: nn.Module, shape: tuple[int, ...], engine: Engine) -> None:
    net = moved(with_lora(network, 2)).double()
    case = oracles.classification(net, shape, samples=6, classes=3)
    result = meta_gradient(*case, optimizer=sgd(0.1), steps=2, engine=engine)
    expected = oracles.maml(case, oracles.sgd_rule(0.1), 2)[0]
    assert any(".down." in name and bool(value.any()) for name, value in expected.items())
    oracles.assert_trees(result.grads, expected, 1e-8)


@pytest.mark.parametrize("learner", [MetaLearner, ANIL, Reptile, CAVIA, ProtoNet])
def test_learners_of_several_networks_share_what_is_fixed(learner: Any) -> None:
    """Gradients and scores of members with one body are those of each network alone."""
    body = Conv4((1, 16, 16), 3, filters=3)
    nets = [moved(with_lora(body, 2, seed=seed)).double() for seed in (0, 1)]
    tasks = oracles.classification(nets[0], (1, 16, 16), samples=6, classes=3)[2]
    tasks = TaskBatch(tasks.support, tasks.query, torch.arange(3).expand(len(tasks.query[1]), -1))
    several = learner(Ensemble.from_modules(nets))
    found = several.gradient(several.params, tasks)
    scores = several.score(tasks, inductive=True)
    fixed = {n for n, p in nets[0].named_parameters() if not p.requires_grad}
    assert fixed and not any(name.endswith(tuple(fixed)) for name in found.grads)
    for row, net in enumerate(nets):
        alone = learner(net, seed=row) if learner is CAVIA else learner(net)
        expected = alone.gradient(alone.params, tasks)
        got = {name: value[row] for name, value in found.grads.items()}
        oracles.assert_trees(got, expected.grads, 1e-9)
        torch.testing.assert_close(found.loss[row], expected.loss)
        one = alone.score(tasks, inductive=True)
        assert scores.members is not None
        torch.testing.assert_close(scores.members.losses[:, row], one.losses)
        x = tasks.query[0][0]
        support = tasks.support[0][0], tasks.support[1][0]
        torch.testing.assert_close(several.adapt(support)(x)[row], alone.adapt(support)(x))


def test_what_is_fixed_has_to_be_the_same_for_all_members() -> None:
    nets = [with_lora(MLP((4,), 3, hidden=(6,), seed=seed), 2) for seed in (0, 1)]
    with pytest.raises(SettingError, match=r"model='1.layer.weight': buffers and fixed parameters"):
        MetaLearner(Ensemble.from_modules(nets))
    norms = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    with pytest.raises(SettingError, match="running statistics|track_running_stats"):
        MetaLearner(Ensemble.from_modules(norms))


def test_gradients_of_samples_are_those_of_adapters() -> None:
    net = moved(with_lora(MLP((4,), 3, hidden=(6,)), 2)).double()
    apply, params, buffers = functionalize(net)
    x, y = noise(5, 4), torch.arange(5) % 3

    def loss(params: Any, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(apply(params, buffers, batch[0]), batch[1])

    found = per_sample_gradients(loss, params, (x, y))
    assert set(found) == {n for n, p in net.named_parameters() if p.requires_grad}
    for index in range(5):
        net.zero_grad()
        nn.functional.cross_entropy(net(x[index : index + 1]), y[index : index + 1]).backward()
        for name, value in found.items():
            torch.testing.assert_close(value[index], net.get_parameter(name).grad)


def test_layers_by_name_and_networks_that_give_features(tmp_path: Any) -> None:
    net = with_lora(Conv4((1, 16, 16), 3, filters=3, head=False), 1, layers="blocks.[01].*")
    adapted = [name for name, layer in net.named_modules() if isinstance(layer, LowRank)]
    assert adapted == ["blocks.0.0", "blocks.1.0"]
    assert all(".down." in n or ".up." in n for n, p in net.named_parameters() if p.requires_grad)
    body = with_lora(ViT((1, 8, 8), 3, patch=4, width=6, depth=1, heads=2, head=False), 1)
    assert all(".down." in n or ".up." in n for n, p in body.named_parameters() if p.requires_grad)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    load_weights(net, tmp_path / "state.pt")


def test_attention_of_torch_is_left() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    net = with_lora(nn.Sequential(layer, nn.Linear(4, 2)), 1)
    adapted = [name for name, part in net.named_modules() if isinstance(part, LowRank)]
    assert adapted == ["0.linear1", "0.linear2"]


class ReadsWeights(nn.Module):
    """A network that reads its layers' weights in place of calling them, as torchvision's Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 3), nn.Conv2d(2, 4, (3, 1), padding=(1, 0))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.conv.weight, self.conv.bias, padding=(1, 0)).mean((2, 3))
        return self.head(nn.functional.linear(x, self.linear.weight, self.linear.bias))


def test_layers_whose_weights_are_read_are_adapted_too() -> None:
    net, x = ReadsWeights().double(), noise(3, 2, 5, 5)
    adapted = with_lora(net, 2, alpha=3.0)
    torch.testing.assert_close(adapted(x), net(x))
    moved(adapted)
    called = adapted.head(adapted.linear(adapted.conv(x).mean((2, 3))))
    torch.testing.assert_close(adapted(x), called)
    assert not torch.allclose(adapted(x), net(x))


def test_convolutions_with_groups_are_left_and_refused_by_name() -> None:
    grouped = nn.Conv2d(2, 2, 3, groups=2)
    net = with_lora(nn.Sequential(nn.Conv2d(1, 2, 3), grouped, nn.Flatten(), nn.Linear(8, 2)), 1)
    assert [n for n, part in net.named_modules() if isinstance(part, LowRank)] == ["0"]
    with pytest.raises(SettingError, match="layer=Conv2d.*a layer without groups is needed"):
        LowRank(grouped, 1, 1.0, torch.Generator())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank=0: a whole number of at least 1"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"layers": "nothing"}, "layers='nothing': a pattern for layers among 1, 3 is needed"),
        ({"seed": -1}, "seed=-1"),
        ({"module": nn.Sequential(nn.ReLU())}, r"layers='\*': .* among none here"),
    ],
)
def test_bad_values(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        with_lora(**{"module": MLP((4,), 3, hidden=(6, 5)), "rank": 1} | given)  # type: ignore[arg-type]
