"""Every member descends its own weighting of the training examples, as if trained alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import Ensemble
from metalearn.attribution import random_subsets
from metalearn.data import Augmentation
from metalearn.data.regression import SupervisedData
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP
from metalearn.trainers import (
    BatchEnsembleTrainer,
    EnsembleTrainer,
    MCDropoutTrainer,
    PerSampleTrainer,
    SnapshotTrainer,
    SWAGTrainer,
)
from metalearn.trainers.supervised.member_gradients import smoothed_cross_entropy
from tests.support.alone import (
    Precise,
    assert_member,
    conv_network,
    mlp_network,
    networks,
    train_alone,
)
from tests.support.builders import assert_same, ensemble_trainer, last, samples, state_of
from tests.support.small_data import blobs, waves

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
SMOOTHING = [0.0, 0.125, 0.25]
CONSTANT: dict[str, Any] = {"schedule": "constant", "clip": None, "optimizer": SGD}

NPY = b"\x93NUMPY\x01\x00v\x00"  # then a header of 118 bytes
VAST = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000000000,)}"


def drawn(members: int, examples: int, seed: int = 0) -> Tensor:
    """Any weights, many of them 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = 2 * torch.rand(members, examples, dtype=torch.float64, generator=generator)
    return weights * (weights > 0.7)


def trained(model: Ensemble, data: SupervisedData, **settings: Any) -> Any:
    trainer = ensemble_trainer(model=model, data=data, **{**CONSTANT, **settings})
    before = list(trainer.ensemble.members())
    trainer.fit()
    return trainer, before


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().sum(-1)


def of_margins(outputs: Tensor, targets: Tensor) -> Tensor:
    right = outputs.gather(1, targets[:, None])
    return (1 + outputs - right).clamp_min(0).sum(1) - 1


# --- a member is a solo run with its weights ----------------------------------------------------


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize("order", ["member", "shared", "bootstrap"])
@pytest.mark.parametrize("make", [conv_network, mlp_network])
def test_members_are_plain_weighted_loops(
    make: Callable[..., nn.Module], order: str, engine: str
) -> None:
    data, seeds = samples(), [4, 0, 7]
    weights = drawn(3, data.size("train"))
    how = {"bootstrap": True} if order == "bootstrap" else {"shuffle": order}
    model = networks(make, seeds, dropout=0.0 if order == "shared" else 0.3)
    trainer, before = trained(
        model, data, seeds=seeds, steps=9, engine=engine,
        member_weights=weights, label_smoothing=SMOOTHING, chunk_size=2, max_shift=1, **how,
    )  # fmt: skip
    for index, seed in enumerate([4, 4, 4] if order == "shared" else seeds):
        alone = before[index]
        train_alone(
            alone, data, seed, SGD, steps=9, weights=weights[index],
            label_smoothing=SMOOTHING[index], bootstrap=order == "bootstrap",
            augmentation=Augmentation(max_shift=1),
        )  # fmt: skip
        assert_member(trainer, index, alone)


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize(
    ("loss", "outputs", "criterion"),
    [
        ("mse", 2, lambda f, y: (f - y).square().mean(-1)),
        (
            "gaussian_nll",
            4,
            lambda f, y: F.gaussian_nll_loss(
                f[:, :2], y, f[:, 2:].exp() + 1e-6, full=True, reduction="none", eps=1e-12
            ).sum(-1),
        ),
        (absolute, 2, absolute),
    ],
)
def test_losses_of_real_targets(loss: Any, outputs: int, criterion: Any, engine: str) -> None:
    data = waves(2)
    make = lambda seed: Precise(MLP((2,), outputs, hidden=(5,)), seed)  # noqa: E731
    model = Ensemble.from_modules([make(seed) for seed in range(3)])
    weights = drawn(3, data.size("train"))
    trainer, before = trained(
        model, data, loss=loss, steps=5, engine=engine, member_weights=weights
    )
    for index, alone in enumerate(before):
        train_alone(alone, data, index, SGD, steps=5, weights=weights[index], criterion=criterion)
        assert_member(trainer, index, alone)


def test_a_loss_of_ones_own_of_classes() -> None:
    data = samples()
    weights = drawn(3, data.size("train"))
    trainer, before = trained(
        networks(mlp_network, range(3)), data, loss=of_margins, steps=5, member_weights=weights
    )
    for index, alone in enumerate(before):
        train_alone(alone, data, index, SGD, steps=5, weights=weights[index], criterion=of_margins)
        assert_member(trainer, index, alone)


@pytest.mark.parametrize("engine", ["batched", "loop"])
@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (samples, {"label_smoothing": 0.2, "shuffle": "shared"}),
        (samples, {"bootstrap": True, "accumulate": 2}),
        (samples, {"loss": of_margins}),
        (waves, {"loss": "gaussian_nll"}),
        (waves, {"loss": "mse"}),
        (waves, {"loss": absolute}),
    ],
)
def test_weights_of_one_are_no_weights_bit_for_bit(
    data: Any, settings: dict[str, Any], engine: str
) -> None:
    found, own = data(), {"engine": engine, "steps": 3, **settings}
    width = 4 if settings.get("loss") == "gaussian_nll" else found.outputs

    def run(weights: Tensor | None) -> EnsembleTrainer:
        make = lambda seed: MLP(found.input_shape, width, hidden=(8,), seed=seed)  # noqa: E731
        model = Ensemble.from_factory(make, range(3))
        return trained(model, found, member_weights=weights, **own)[0]

    ones = torch.ones(3, found.size("train"))
    plain = state_of(run(None))
    assert_same(plain, state_of(run(ones)))
    ones[1, ::2] = 0  # what another member lacks is nothing to the others
    mixed = run(ones).module.state_dict()
    for name, value in plain["module"].items():
        assert torch.equal(mixed[name][[0, 2]], value[[0, 2]]), name
    assert any(not torch.equal(mixed[n][1], v[1]) for n, v in plain["module"].items())


def test_an_example_of_weight_0_has_no_part() -> None:
    """What it is does not matter, and its gradient is taken out of the mean over the batch."""
    data = samples()
    weights = torch.ones(3, data.size("train"))
    weights[:, ::3] = 0
    out = data.splits["train"][::3]

    def run(changed: bool) -> Any:
        own = samples()
        if changed:
            own.inputs[out] = 255 - own.inputs[out]
            own.targets[out] = (own.targets[out] + 1) % 3
        return trained(networks(mlp_network, range(3)), own, member_weights=weights)[0]

    assert_same(dict(run(True).module.state_dict()), dict(run(False).module.state_dict()))
    trainer = ensemble_trainer(
        model=networks(mlp_network, range(3)), data=data, member_weights=weights
    )
    x, y, w = trainer.loop.objective.batch(0)
    found = trainer.gradient(0)
    for index, member in enumerate(trainer.ensemble.members()):
        kept = w[index] > 0
        assert 0 < int(kept.sum()) < len(kept)
        loss = F.cross_entropy(member(x[index][kept]), y[index][kept], reduction="sum") / 8
        grads = torch.autograd.grad(loss, list(member.parameters()))
        for (name, _), grad in zip(member.named_parameters(), grads):
            torch.testing.assert_close(
                found.grads[f"stacks.0.network.{name}"][index], grad, rtol=1e-10, atol=1e-12
            )


def test_each_copy_of_a_resample_has_its_weight() -> None:
    data = samples()
    weights = drawn(3, data.size("train"))
    trainer = ensemble_trainer(data=data, member_weights=weights, bootstrap=True)
    repeated = False
    for step in range(3):
        indices = trainer.training.batches.order.indices(step)
        repeated |= any(len(set(row.tolist())) < len(row) for row in indices)
        _, _, found = trainer.loop.objective.batch(step)
        expected = [
            [weights[m, data.splits["train"].tolist().index(i)] for i in row]
            for m, row in enumerate(indices.tolist())
        ]
        assert_same(found, torch.tensor(expected, dtype=torch.float64))
    assert repeated


@pytest.mark.parametrize("kind", [MCDropoutTrainer, BatchEnsembleTrainer, SnapshotTrainer])
def test_ensembles_of_one_network_take_weights(kind: Any) -> None:
    data, own = samples(), {"seeds": [0], "steps": 4, "members": 2, "batch_size": 8}
    quiet = {"progress": False, "engine": "batched", "optimizer": SGD}

    def run(weights: Tensor | None) -> Any:
        network = mlp_network(0, dropout=0.2)
        trainer = kind(
            Ensemble.from_modules([network]), data, member_weights=weights, **own, **quiet
        )
        trainer.fit()
        return trainer.module.state_dict()

    plain, ones = run(None), run(torch.ones(data.size("train")))
    assert_same(dict(plain), dict(ones))
    some = torch.ones(1, data.size("train"))
    some[:, ::2] = 0
    assert any(not torch.equal(v, plain[n]) for n, v in run(some).items())


def test_swag_takes_weights() -> None:
    data = samples()
    model = Ensemble.from_modules([mlp_network(0)])
    trainer = SWAGTrainer(
        model, data, members=2, rank=1, every=1, start=0.1, steps=4, batch_size=8, progress=False,
        member_weights={"leave_out": 0.5}, seeds=[0],
    )  # fmt: skip
    assert trainer.loop.objective.batch(0)[2].unique().tolist() == [0, 1]


@pytest.mark.parametrize("diagnostic", ["gradient_norms", "gradient_variance", "noise_scale"])
def test_diagnostics_see_weighted_gradients(diagnostic: str) -> None:
    data = samples()
    weights = drawn(3, data.size("train"))
    trainer = ensemble_trainer(
        data=data, member_weights=weights, diagnostics=[diagnostic], diagnostics_every=2
    )
    batch = trainer.loop.objective.batch(0)
    gradient = trainer.gradient(0)
    units = trainer.training.source.gradient_units("sample", batch, gradient.grads)
    (block,) = units.blocks()
    found: dict[str, list[Tensor]] = {}
    for chunk in block:
        for name, grad in chunk.items():
            found.setdefault(name, []).append(grad)
    for name, parts in found.items():
        mean = torch.cat(parts, 1).mean(1)
        torch.testing.assert_close(
            mean, gradient.grads[f"stacks.0.network.{name}"], rtol=1e-4, atol=1e-6
        )
    trainer.fit()


# --- one network by per-sample gradients --------------------------------------------------------


@pytest.mark.parametrize("method", ["layers", "vmap", "loop"])
@pytest.mark.parametrize("max_norm", [math.inf, 0.05])
def test_one_network_by_gradients_of_samples(max_norm: float, method: str) -> None:
    data = samples()
    weights = drawn(1, data.size("train"))[0]
    network = mlp_network(0)
    trainer = PerSampleTrainer(
        network, data, max_norm=max_norm, method=method, member_weights=weights, batch_size=8,
        steps=3, progress=False, diagnostics=["gradient_norms"],
    )  # fmt: skip
    x, y, w = trainer.loop.objective.batch(0)
    total = [torch.zeros_like(p) for p in network.parameters()]
    for i in range(8):
        loss = w[i] * F.cross_entropy(network(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(network.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for part, grad in zip(total, grads):
            part += grad * min(1, max_norm / norm if norm else 1) / 8
    found = trainer.gradient(0).grads
    for (name, _), expected in zip(network.named_parameters(), total):
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)
    trainer.fit()


@pytest.mark.parametrize("max_norm", [math.inf, 1.0])
def test_one_network_without_weights_is_one_of_weights_1(max_norm: float) -> None:
    data = samples()

    def run(weights: Any) -> Any:
        trainer = PerSampleTrainer(
            mlp_network(0), data, max_norm=max_norm, member_weights=weights, batch_size=8, steps=4,
            progress=False,
        )  # fmt: skip
        trainer.fit()
        return dict(trainer.module.state_dict())

    plain, ones = run(None), run(torch.ones(data.size("train")))
    for name, value in plain.items():
        torch.testing.assert_close(ones[name], value, rtol=1e-12, atol=1e-12)


# --- going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["member", "shared"])
def test_a_resumed_run_is_the_uninterrupted_one(order: str, tmp_path: Path) -> None:
    data = samples()
    weights = drawn(3, data.size("train"))

    def make(steps: int, folder: Path | None, given: Any = weights) -> EnsembleTrainer:
        return ensemble_trainer(
            data=data, member_weights=given, steps=steps, folder=folder, schedule="constant",
            shuffle=order,
        )  # fmt: skip

    whole = make(8, None)
    whole.fit()
    make(5, tmp_path).fit()
    again = make(8, tmp_path)
    again.resume(last(tmp_path))
    again.fit()
    assert_same(dict(whole.module.state_dict()), dict(again.module.state_dict()))


def per_sample(weights: Any, folder: Path | None = None) -> PerSampleTrainer:
    given = weights if weights is None else weights[0]
    return PerSampleTrainer(
        mlp_network(0), samples(), member_weights=given, batch_size=8, steps=2, progress=False,
        folder=folder,
    )  # fmt: skip


def of_members(weights: Any, folder: Path | None = None) -> EnsembleTrainer:
    return ensemble_trainer(data=samples(), member_weights=weights, steps=2, folder=folder)


@pytest.mark.parametrize("make", [of_members, per_sample])
@pytest.mark.parametrize(
    ("before", "now"), [("some", "others"), ("some", "none"), ("none", "some")]
)
def test_other_weights_are_refused_on_resuming(
    make: Callable[..., Any], before: str, now: str, tmp_path: Path
) -> None:
    known = {"some": drawn(3, 30), "others": drawn(3, 30, seed=1), "none": None}
    make(known[before], tmp_path).fit()
    trainer = make(known[now])
    fresh = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    with pytest.raises(DataError, match="this checkpoint does not fit the run .*member_weights"):
        trainer.resume(last(tmp_path))
    assert_same(dict(trainer.module.state_dict()), fresh)
    make(known[before]).resume(last(tmp_path))


def test_the_checksum_is_of_values(tmp_path: Path) -> None:
    weights = torch.ones(3, 30)
    weights[0, :4] = 0
    of_members(weights, tmp_path).fit()
    of_members(weights.bool()).resume(last(tmp_path))
    of_members(weights.double()).resume(last(tmp_path))


# --- what may be given --------------------------------------------------------------------------


def test_subsets_are_drawn_of_a_size_each_by_its_address() -> None:
    weights = random_subsets(5, 40, leave_out=0.1, seed=3)
    assert weights.shape == (5, 40) and weights.unique().tolist() == [0, 1]
    assert (weights == 0).sum(1).tolist() == [4] * 5
    assert torch.equal(random_subsets(3, 40, leave_out=0.1, seed=3), weights[:3])
    assert len({tuple(row.tolist()) for row in weights}) == 5
    assert not torch.equal(random_subsets(5, 40, leave_out=0.1, seed=4), weights)
    often = (random_subsets(400, 10, leave_out=0.3) == 0).double().mean(0)
    assert ((often - 0.3).abs() < 0.1).all()


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_weights_of_a_file(suffix: str, tmp_path: Path) -> None:
    weights, path = drawn(3, 30), tmp_path / f"weights.{suffix}"
    if suffix == "npy":
        np.save(path, weights.numpy())
    else:
        np.savetxt(path, weights.numpy(), delimiter=",")
    for given in (path, str(path)):
        found = of_members(given).loop.objective.batch(0)
        assert_same(found, of_members(weights).loop.objective.batch(0))


def test_subsets_of_a_mapping() -> None:
    found = of_members({"leave_out": 0.2, "seed": 5}).loop.objective.batch(0)
    expected = random_subsets(3, 30, leave_out=0.2, seed=5)
    assert_same(found, of_members(expected).loop.objective.batch(0))


def broken(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_a_wrong(value: float) -> Tensor:
    weights = torch.ones(3, 30)
    weights[1, 2] = value
    return weights


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(3, 29), r"member_weights='\[3, 29\]': \[3, 30\] is needed, a row for each"),
        (torch.ones(2, 30), r"member_weights='\[2, 30\]': \[3, 30\] is needed"),
        (torch.ones(30), r"member_weights='\[30\]': \[3, 30\] is needed"),
        (torch.ones(3, 30, 1), r"member_weights=.*: \[3, 30\] is needed"),
        (with_a_wrong(-1), r"member_weights=-1.0: finite numbers of at least 0 .* \[1, 2\] is"),
        (with_a_wrong(math.nan), r"member_weights=nan: finite numbers of at least 0 are needed"),
        (with_a_wrong(math.inf), r"member_weights=inf: finite numbers of at least 0 are needed"),
        (torch.ones(3, 30) * 1j, "member_weights='torch.complex64': real numbers are needed"),
        ([[1.0]], "member_weights=.*: a Tensor or a mapping or a text or a path or null is"),
        ({"leave_out": 0}, r"member_weights.leave_out=0: a number in \(0, 1\) is needed"),
        ({"leave_out": 0.01}, "member_weights.leave_out=0.01: a share is needed that leaves out 1"),
        ({"leave_out": "much"}, "member_weights.leave_out='much': a number is needed"),
        ({"leave": 0.1}, "member_weights.leave=0.1: there is no such setting; did you mean memb"),
        ({"seed": 1}, r"member_weights=\{'seed': 1\}: leave_out is needed"),
        ({"leave_out": 0.1, "seed": -1}, "member_weights.seed=-1: a whole number in 0"),
        ({"leave_out": 0.1, "examples": 3}, "member_weights.examples=3: there is no such setting"),
        ("weights.pt", "member_weights='weights.pt': a file .npy or .csv, or {leave_out: 0.05}"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_get_one_sentence(given: Any, message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}") as caught:
        of_members(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.npy", None, r"these weights cannot be read \(No such file"),
        ("bad.npy", b"no array", "this is no table of numbers"),
        ("cut.npy", b"\x93NUMPY\x01\x00", "this is no table of numbers"),
        ("archive.npy", b"PK\x03\x04" + b"0" * 50, "this is no table of numbers"),
        ("open.npy", NPY + b"(" * 118, "this is no table of numbers"),
        ("vast.npy", NPY + VAST.ljust(118), "this is no table of numbers"),
        ("bad.csv", b"1,2\n3,x\n", "this is no table of numbers"),
        ("ragged.csv", b"1,2\n3\n", "this is no table of numbers"),
        ("empty.csv", b" \n", r"this is no table of numbers \(it is empty\)"),
        ("binary.csv", b"\xff\xfe\x00", "this is no table of numbers"),
    ],
)
def test_files_that_are_no_tables(
    name: str, content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {reason}") as caught:
        of_members(path)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "weights.npy"
    np.save(path, np.array([[print]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="this is no table of numbers"):
        of_members(path)


@pytest.mark.parametrize("make", ["members", "one network"])
def test_a_mean_cannot_be_weighted(make: str) -> None:
    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    data = blobs()
    weights = torch.ones(1, data.size("train"))
    accepted = r"shape of loss=\[\]: losses \[2\], one for each sample, are needed where samples"
    with pytest.raises(SettingError, match=f"^{accepted}"):
        if make == "members":
            model = Ensemble.from_modules([MLP((2,), 3)])
            EnsembleTrainer(model, data, loss=mean, member_weights=weights, batch_size=8)
        else:
            PerSampleTrainer(MLP((2,), 3), data, loss=mean, member_weights=weights, batch_size=8)


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_the_smoothed_loss_is_that_of_log_softmax(
    lead: tuple[int, ...], weighted: bool, scale: float
) -> None:
    draws = torch.Generator().manual_seed(0)
    outputs = scale * torch.randn(*lead, 6, 4, generator=draws, dtype=torch.float64)
    outputs.requires_grad_()
    labels, smoothing = torch.arange(6) % 4, torch.tensor(0.3, dtype=torch.float64)
    weights = torch.rand(6, generator=draws).double() if weighted else None
    found = smoothed_cross_entropy(outputs, labels, smoothing, weights)
    log_p = outputs.log_softmax(-1)
    right = log_p.gather(-1, labels.expand(*lead, 6).unsqueeze(-1)).squeeze(-1)
    losses = -0.7 * right - 0.3 * log_p.mean(-1)
    expected = (losses if weights is None else losses * weights).mean()
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(x, outputs)[0] for x in (found, expected))
    torch.testing.assert_close(one, other)
