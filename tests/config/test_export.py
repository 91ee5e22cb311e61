"""Runs written as one file, and loaded again without their data."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import metalearn
from metalearn.errors import DataError, SettingError
from metalearn.models import MLP, Ensemble
from metalearn.trainers import InductiveModule
from tests.support.commands import ROOT, Outcome

RUNS = ROOT / "tests" / "saved_runs"
LEARNERS = (
    "v1/meta_sinusoid-finished", "v1/meta_pictures-finished", "v1/meta_members-finished",
    "v2/meta_protonet-finished", "v4/meta_learnt_rates-finished",
    "v4/meta_learnt_members-finished",
)  # fmt: skip
ON_SAMPLES = ("v1/ensemble-finished", "v1/per_sample-finished", "v3/regression-finished")
TASKS = ("glyph_tasks", "omniglot_tasks", "folder_tasks")
DATA = ("digits_data", "glyphs_data", "waves_data", "folder_data")
OF_MORE = ("v1/swag-finished", "v1/snapshot-finished", "v1/mc_dropout-finished")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A saved run in a folder of its own."""

    def copy(name: str) -> Path:
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(RUNS / name, folder)
        return folder

    return copy


def first_task(folder: Path) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A support set of two of each class, or of four values, and inputs of five queries."""
    tasks: Any = metalearn.load(folder).tasks  # type: ignore[attr-defined]
    draws = torch.Generator().manual_seed(0)
    if tasks.kind == "regression":
        given = torch.randn(4, *tasks.input_shape, generator=draws)
        support = given, given.sin()
    else:
        labels = torch.arange(tasks.outputs).repeat(2)
        support = torch.rand(len(labels), *tasks.input_shape, generator=draws), labels
    dtype = next(metalearn.load(folder).module.parameters()).dtype
    support = (
        support[0].to(dtype),
        support[1] if tasks.kind != "regression" else support[1].to(dtype),
    )
    return support, torch.rand(5, *tasks.input_shape, generator=draws, dtype=dtype)


def without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would look for data, or compute them, fails."""
    for room, names in {"tasks": TASKS, "data": DATA}.items():
        for name in names:
            original = getattr(getattr(metalearn, room), name)

            @functools.wraps(original)
            def refuse(*given: Any, **settings: Any) -> Any:
                raise AssertionError("data were looked for")

            monkeypatch.setattr(f"metalearn.{room}.{name}", refuse)


def outputs(module: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(inputs)
    return found


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_is_loaded_without_its_data(
    name: str, copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(name)
    support, query = first_task(folder)
    trained: Any = metalearn.load(folder)
    wanted = outputs(trained.learner.adapt(support), query)
    bare = metalearn.export(folder, tmp_path / "bare.safetensors")
    adapted = metalearn.export(folder, tmp_path / "adapted.safetensors", support=support)
    without_data(monkeypatch)
    learner: Any = metalearn.load_export(bare)
    module: Any = metalearn.load_export(adapted)
    assert torch.equal(outputs(learner.adapt(support), query), wanted)
    assert torch.equal(outputs(module, query), wanted)
    names = set(load_file(adapted)) - set(load_file(bare))
    assert names == {"support.inputs", "support.targets"}


@pytest.mark.parametrize("name", ON_SAMPLES)
def test_networks_are_loaded_without_their_data(
    name: str, copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(name)
    trained: Any = metalearn.load(folder)
    inputs = trained.data.part("test")[0][:5]
    wanted = outputs(trained.module.eval(), inputs)
    path = metalearn.export(folder, tmp_path / "it.safetensors")
    without_data(monkeypatch)
    module: Any = metalearn.load_export(path)
    assert isinstance(module, Ensemble) == isinstance(trained.module, Ensemble)
    assert torch.equal(outputs(module, inputs), wanted)


@pytest.mark.parametrize("name", ["v1/meta_sinusoid-finished", "v1/ensemble-finished"])
def test_both_checkpoints(name: str, copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(name)
    for which in ("best", "last"):
        path = metalearn.export(folder, tmp_path / f"{which}.safetensors", checkpoint=which)  # type: ignore[arg-type]
        loaded = metalearn.load(folder, which=which)  # type: ignore[arg-type]
        for entry, value in loaded.module.state_dict().items():
            assert torch.equal(load_file(path)[entry], value)


@pytest.mark.parametrize("name", LEARNERS)
def test_an_adapted_predictor_is_a_program(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    """Or refused in one sentence, where queries are answered one by one beside the support set."""
    folder, path = copied(name), tmp_path / "it.pt2"
    support, query = first_task(folder)
    trained: Any = metalearn.load(folder)
    adapted = trained.learner.adapt(support)
    how: Any = {"format": "torch_export", "support": support}
    if any(isinstance(part, InductiveModule) for part in adapted.modules()):
        with pytest.raises(SettingError, match="format='torch_export'.*safetensors holds it"):
            metalearn.export(folder, path, **how)
        assert not path.exists()
        return
    program = torch.export.load(metalearn.export(folder, path, **how)).module()
    for inputs in (query, query[:2]):
        torch.testing.assert_close(
            outputs(program, inputs), outputs(adapted, inputs), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ON_SAMPLES)
def test_networks_are_programs(name: str, copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(name)
    trained: Any = metalearn.load(folder)
    inputs = trained.data.part("test")[0][:5]
    path = metalearn.export(folder, tmp_path / "it.pt2", format="torch_export")
    program = torch.export.load(path).module()
    wanted = outputs(trained.module.eval(), inputs)
    torch.testing.assert_close(outputs(program, inputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_MORE)
def test_members_of_more_than_weights_are_refused(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(
        SettingError, match="^format='safetensors': a run of trainer=meta, ensemble"
    ):
        metalearn.export(copied(name), tmp_path / "it.safetensors")
    assert not (tmp_path / "it.safetensors").exists()


def test_what_cannot_be_exported(copied: Callable[[str], Path], tmp_path: Path) -> None:
    learner, ensemble = copied(LEARNERS[0]), copied(ON_SAMPLES[0])
    given = torch.ones(2, 1), torch.ones(2, 1)
    with pytest.raises(SettingError, match="^format='onnx': one of safetensors, torch_export is"):
        metalearn.export(learner, tmp_path / "it", format="onnx")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="^support=None: a support set is needed"):
        metalearn.export(learner, tmp_path / "it", format="torch_export")
    with pytest.raises(SettingError, match="^support='a support set': None is needed"):
        metalearn.export(ensemble, tmp_path / "it", support=given)
    with pytest.raises(SettingError, match="^checkpoint='first': best or last is needed"):
        metalearn.export(learner, tmp_path / "it", checkpoint="first")  # type: ignore[arg-type]
    assert not (tmp_path / "it").exists()


def test_files_that_are_none_of_ours(copied: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    with pytest.raises(DataError, match="there is no such file"):
        metalearn.load_export(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="holds no safetensors"):
        metalearn.load_export(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="was not written by metalearn"):
        metalearn.load_export(path)
    good = metalearn.export(copied(LEARNERS[0]), path)
    tensors, notes = load_file(good), _notes(good)
    save_file({n: v[:1] for n, v in tensors.items()}, path, metadata=notes)
    with pytest.raises(DataError, match="its weights do not fit its settings"):
        metalearn.load_export(path)
    spoilt = {n: torch.full_like(v, float("nan")) for n, v in tensors.items()}
    save_file(spoilt, path, metadata=notes)
    with pytest.raises(DataError, match="not finite"):
        metalearn.load_export(path)
    evil = notes["config"].replace("metalearn.models.MLP", "os.system")
    save_file(tensors, path, metadata={**notes, "config": evil})
    with pytest.raises(DataError, match="os.system.*nothing that a run of metalearn builds"):
        metalearn.load_export(path)


def _notes(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_parts_of_a_file_that_do_not_belong_together(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    path, folder = tmp_path / "it.safetensors", copied("v1/meta_pictures-finished")
    support, _ = first_task(folder)
    metalearn.export(folder, path, support=support)
    tensors, notes = load_file(path), _notes(path)
    inputs, targets = "support.inputs", "support.targets"
    for changed, message in (
        ({n: v for n, v in tensors.items() if n != inputs}, "part of a support set"),
        ({**tensors, targets: tensors[targets] + 10}, "cannot adapt to its support set"),
        ({**tensors, inputs: tensors[inputs].flatten()}, "cannot adapt to its support set"),
        ({**tensors, "more": torch.ones(1)}, "its weights do not fit its settings"),
    ):
        save_file(changed, path, metadata=notes)
        with pytest.raises(DataError, match=message):
            metalearn.load_export(path)
    metalearn.export(copied("v1/per_sample-finished"), path)
    tensors, notes = load_file(path), _notes(path)
    name = next(iter(tensors))
    for changed, noted in (
        (tensors, {n: v for n, v in notes.items() if n != "data"}),
        (tensors, {**notes, "data": "5"}),
        (tensors, {**notes, "data": '{"kind": "classification", "outputs": 10}'}),
        (tensors, {**notes, "config": notes["config"] + "#" * 2**18}),
        ({**tensors, name: tensors[name].long()}, notes),
        ({**tensors, inputs: torch.ones(2)}, notes),
    ):
        save_file(changed, path, metadata=noted)
        with pytest.raises(DataError):
            metalearn.load_export(path)


def test_a_program_is_written_whole_or_not_at_all(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there" / "it.pt2"
    path.parent.mkdir()
    path.write_bytes(b"before")

    def fail(program: Any, file: Any) -> None:
        file.write(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match=r"No space.*it\.pt2"):
        metalearn.export(copied(ON_SAMPLES[0]), path, format="torch_export")
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "given",
    [
        "model=conv4 model.filters=2 model.halvings=1 trainer.batch_norm=groupnorm",
        "model=vit model.patch=4 model.width=8 model.depth=1 model.heads=2 "
        "model.frozen_features=true",
    ],
    ids=["conv4", "vit"],
)
def test_networks_that_were_converted_or_learnt_on_features(
    given: str, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    quiet = ["trainer.steps=1", "trainer.batch_size=4", "trainer.progress=false"]
    rest = ["trainer=per_sample", "data=digits", "trainer.diagnostics=[]"]
    outcome = run("train", *rest, *quiet, f"hydra.run.dir={folder}", *given.split())
    assert outcome.code == 0, outcome.err
    trained: Any = metalearn.load(folder)
    inputs = torch.rand(3, *trained.data.input_shape)
    wanted = outputs(trained.module.eval(), inputs)
    path = metalearn.export(folder, tmp_path / "it.safetensors")
    without_data(monkeypatch)
    assert torch.equal(outputs(metalearn.load_export(path), inputs), wanted)


def test_files_of_weights_are_not_looked_for(
    copied: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of torchvision's that began with a file is made anew without that file."""
    seen: list[Any] = []

    def network(node: Any, *_: Any) -> nn.Module:
        seen.append((node.weights, node.standardise))
        return MLP((64,), 10, hidden=(4,))

    path = metalearn.export(copied("v1/per_sample-finished"), tmp_path / "it.safetensors")
    net = MLP((64,), 10, hidden=(4,))
    config = OmegaConf.create(_notes(path)["config"])
    config.model = {
        "_target_": "metalearn.models.torchvision_model", "weights": "gone.pt", "standardise": None
    }  # fmt: skip
    save_file(
        net.state_dict(), path, metadata={**_notes(path), "config": OmegaConf.to_yaml(config)}
    )
    monkeypatch.setattr("metalearn.cli.networks._network", network)
    found: Any = metalearn.load_export(path)
    assert seen == [(None, True)]
    assert torch.equal(found(torch.ones(1, 64)), net(torch.ones(1, 64)))


def test_the_command(
    run: Callable[..., Outcome], copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(LEARNERS[0])
    support, query = first_task(folder)
    save_file({"inputs": support[0], "targets": support[1]}, tmp_path / "support.safetensors")
    given = [f"run={folder}", f"support={tmp_path / 'support.safetensors'}"]
    outcome = run("export", *given)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"written: {folder / 'export.safetensors'}\n"
    module: Any = metalearn.load_export(folder / "export.safetensors")
    assert isinstance(module, nn.Module) and outputs(module, query).shape == (len(query), 1)
    outcome = run("export", *given, "format=torch_export", f"path={tmp_path / 'it.pt2'}")
    assert outcome.code == 0 and (tmp_path / "it.pt2").is_file(), outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["format=onnx"], "format='onnx': one of safetensors, torch_export is needed"),
        (["format=torch_export"], "support=None: a support set is needed"),
        (["support=nowhere"], "support='nowhere': there is nothing"),
        (["support=5"], "support=5: the name of a file, or null, is needed"),
        (["checkpoint=first"], "checkpoint='first': best or last is needed"),
        (["path=[1]"], "path=[1]: the name of a file, or null, is needed"),
        (["steps=1"], "steps: there is no such setting"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], sentence: str, run: Callable[..., Outcome], copied: Callable[[str], Path]
) -> None:
    outcome = run("export", f"run={copied(LEARNERS[0])}", *arguments)
    assert outcome.code == 2 and sentence in outcome.err, outcome.err
