"""Networks of torchvision: heads, channels, weights, and second derivatives in every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from metalearn.core import Engine, convert_norm, meta_gradient, sgd
from metalearn.errors import DataError, SettingError
from metalearn.models import SavedWeights, torchvision_model
from metalearn.models.torchvision_models import put_saved, standardisation
from tests.support import oracles
from tests.support.builders import assert_same

SMALL = "squeezenet1_1"


@pytest.mark.parametrize("name", [SMALL, "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5"])
@pytest.mark.parametrize("channels", [1, 4])
def test_outputs_and_channels(name: str, channels: int) -> None:
    net = torchvision_model((channels, 32, 32), 4, name=name).eval()
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, 4)
    features = torchvision_model((channels, 32, 32), 4, name=name, head=False).eval()
    assert features(torch.rand(2, channels, 32, 32)).shape[1] > 4
    assert not any(getattr(layer, "inplace", False) for layer in net.modules())


def test_weights_follow_the_seed_and_nothing_else() -> None:
    state = torch.get_rng_state()
    one, same, other = (torchvision_model((3, 32, 32), 4, name=SMALL, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for mine, equal, different in zip(one.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(mine, equal)
        assert not mine.any() or not torch.equal(mine, different)


# --- weights from a file -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A network of torchvision's with as many classes as those of a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "state.pt"
    torch.save(net.state_dict(), path)
    return path, net


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_of_a_file_answer_as_torchvision_does(
    channels: int, saved: tuple[Path, nn.Module]
) -> None:
    path, net = saved
    body = torchvision_model(
        (channels, 32, 32), 4, name="shufflenet_v2_x0_5", weights=str(path), head=False
    ).eval()
    pictures = torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    normal = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (normal.mean, normal.std))
    net.fc = nn.Identity()
    expected = net((pictures.expand(-1, 3, -1, -1) - mean) / deviation)
    torch.testing.assert_close(body(pictures), expected)


def normalised(name: str, pictures: torch.Tensor) -> torch.Tensor:
    """As torchvision's own weights of a network want them."""
    normal = models.get_model_weights(name).DEFAULT.transforms()
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (normal.mean, normal.std))
    return (pictures - mean) / deviation


def test_each_network_has_the_pictures_that_its_weights_want() -> None:
    for name in (SMALL, "efficientnet_v2_l"):
        hook = standardisation(name)
        pictures = torch.rand(2, 3, 8, 8)
        torch.testing.assert_close(hook(nn.Identity(), (pictures,))[0], normalised(name, pictures))
    assert standardisation("efficientnet_v2_l").keywords["mean"] == (0.5, 0.5, 0.5)


SMALLEST: dict[str, Callable[[], nn.Module]] = {
    "densenet": lambda: models.DenseNet(4, (1, 2), 4, num_classes=3),
    "vit": lambda: models.VisionTransformer(32, 16, 1, 2, 8, 8, num_classes=3),
    "mnasnet": lambda: models.MNASNet(0.5, num_classes=3),
    "shufflenet": lambda: models.ShuffleNetV2([1, 1, 1], [8, 8, 8, 8, 8], num_classes=3),
}


@pytest.mark.parametrize("kind", SMALLEST)
def test_files_of_earlier_releases(kind: str) -> None:
    """They have no counters of batches, and other names of some layers."""
    net, other = SMALLEST[kind](), SMALLEST[kind]()
    names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."} | {
        f".{layer}{i}.": f".{layer}.{i}." for layer in ("norm", "conv") for i in (1, 2)
    }
    state = {}
    for entry, value in net.state_dict().items():
        if "denselayer" in entry or "mlp" in entry:
            for new, old in names.items():
                entry = entry.replace(new, old)
        if not entry.endswith("num_batches_tracked"):
            state[entry] = value
    put_saved(other, SavedWeights(Path("old.pt"), state, {}, ""))
    assert_same(other.state_dict(), net.state_dict())
    state.popitem()
    with pytest.raises(DataError, match="^old.pt: these weights do not fit: it has no "):
        put_saved(other, SavedWeights(Path("old.pt"), state, {}, ""))


def test_weights_that_torchvision_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its builder refuses other settings than those of its weights."""
    with torch.random.fork_rng(devices=[]):
        net = models.get_model("googlenet", weights=None, init_weights=False)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: net.state_dict())
    got = torchvision_model((3, 64, 64), 4, name="googlenet", download=True)
    assert torch.equal(got.state_dict()["conv1.conv.weight"], net.conv1.conv.weight)
    assert got.transform_input  # its weights are of pictures that are standardised otherwise

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(SettingError, match="^download=True: torchvision cannot fetch it: no netw"):
        torchvision_model((3, 64, 64), 4, name=SMALL, download=True)


@pytest.mark.parametrize("shape", [(), (0, 1024), (7,), (7, 3), (1, 7, 1024)])
def test_last_layers_of_no_use_are_refused(
    shape: tuple[int, ...], saved: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    state = torch.load(saved[0]) | {"fc.weight": torch.ones(shape)}
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(DataError, match="these weights do not fit: fc.weight is"):
        torchvision_model(
            (3, 32, 32), 4, name="shufflenet_v2_x0_5", weights=str(tmp_path / "state.pt")
        )


def test_weights_of_another_network_are_refused(saved: tuple[Path, nn.Module]) -> None:
    with pytest.raises(DataError, match="these weights do not fit"):
        torchvision_model((3, 32, 32), 4, name=SMALL, weights=str(saved[0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "resnet8"}, r"name='resnet8': .*did you mean"),
        ({"name": 5}, "name=5"),
        ({"input_shape": (28, 28)}, r"input_shape=\(28, 28\): squeezenet1_1 takes pictures"),
        ({"input_shape": (3, 30, 30), "name": "vit_b_32"}, "squares of a multiple of 32"),
        ({"input_shape": (2, 32, 32), "standardise": True}, r"input_shape=\(2, 32, 32\): 1 or 3"),
        ({"weights": "nowhere.pt"}, "weights='nowhere.pt': there is nothing"),
        ({"weights": __file__, "download": True}, "download=True: false is needed beside"),
        ({"outputs": 0}, "outputs=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings(given: dict[str, Any], message: str) -> None:
    settings = {"input_shape": (3, 32, 32), "outputs": 4, "name": SMALL} | given
    with pytest.raises(SettingError, match=message):
        torchvision_model(**settings)  # type: ignore[arg-type]


# --- second derivatives ------------------------------------------------------------------------


def case(name: str, norm: Any) -> oracles.Problem:
    net = convert_norm(torchvision_model((3, 32, 32), 3, name=name), norm).double()
    return oracles.classification(net, (3, 32, 32), samples=3, classes=3)


@pytest.fixture(scope="module")
def resnet() -> tuple[oracles.Problem, Any]:
    problem = case("resnet18", "batch_stats")
    return problem, oracles.maml(problem, oracles.sgd_rule(0.01), 1)[0]


@pytest.mark.parametrize("engine", ["batched", "vmap", "loop"])
def test_the_meta_gradient_of_resnet18(resnet: tuple[oracles.Problem, Any], engine: Engine) -> None:
    problem, expected = resnet
    result = meta_gradient(*problem, optimizer=sgd(0.01), steps=1, engine=engine)
    oracles.assert_trees(result.grads, expected, 1e-7)  # one position a picture in the last block


@pytest.mark.parametrize("name", [SMALL, "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_meta_gradients_of_small_families(name: str) -> None:
    problem = case(name, "group")
    expected = oracles.maml(problem, oracles.sgd_rule(0.01), 1)[0]
    for engine in ("batched", "vmap", "loop"):
        result = meta_gradient(*problem, optimizer=sgd(0.01), steps=1, engine=engine)
        oracles.assert_trees(result.grads, expected, 1e-9)
