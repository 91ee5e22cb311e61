"""Tiny pictures, tasks, models, trackers and trainers for the tests of the rooms above the core.

Axes: N pictures, C classes, T tasks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from metalearn.data import ClassificationData, LabelledImages
from metalearn.models import MLP, Ensemble
from metalearn.tasks import FewShotTasks, SinusoidTasks
from metalearn.trainers import MAML, EnsembleTrainer, LoopSettings, MetaTrainer
from metalearn.trainers.loop.assembly import assemble, place
from metalearn.trainers.loop.protocols import Evaluation, Stateless
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.trainer import Trainer
from metalearn.types import Params, Split, TaskBatch

SPLITS: Mapping[str, tuple[int, ...]] = {
    "train": tuple(range(8)),
    "validation": tuple(range(8, 12)),
    "test": tuple(range(12, 16)),
}
_BOOKS: dict[int, tuple[LabelledImages, dict[bytes, tuple[int, int, int]]]] = {}


def labelled(
    counts: Sequence[int] = (6,) * 16,
    *,
    splits: Mapping[str, tuple[int, ...]] | None = None,
    groups: Sequence[str] | None = None,
    shape: tuple[int, int, int] = (1, 4, 4),
) -> LabelledImages:
    """``counts[c]`` pictures of class c, all different in every turn, classes interleaved."""
    rows = sorted((n, c) for c, count in enumerate(counts) for n in range(count))
    size = int(np.prod(shape))
    images = torch.empty(len(rows), size, dtype=torch.uint8)
    for i, (n, c) in enumerate(rows):
        images[i] = torch.tensor([(37 * c + 101 * n + 13 * k * k) % 200 for k in range(size)])
        images[i, :3] = torch.tensor([255, c, n])
    names = tuple(f"class{c}" for c in range(len(counts)))
    return LabelledImages(
        images.reshape(-1, *shape),
        torch.tensor([c for _, c in rows]),
        names,
        tuple(groups or ["all"] * len(counts)),
        SPLITS if splits is None else splits,
    )


def read_pictures(data: LabelledImages, inputs: Tensor) -> list[tuple[int, int, int]]:
    """(class, picture, quarter turns) of each input, found by comparing with all pictures."""
    if _BOOKS.get(id(data), (None,))[0] is not data:
        _BOOKS[id(data)] = data, _book(data)
    _, book = _BOOKS[id(data)]
    back = (inputs * 255).round().to(torch.uint8)
    return [book[picture.contiguous().numpy().tobytes()] for picture in back]


def _book(data: LabelledImages) -> dict[bytes, tuple[int, int, int]]:
    book = {
        torch.rot90(image, turn, (-2, -1)).contiguous().numpy().tobytes(): (int(label), i, turn)
        for turn in range(4)
        for i, (image, label) in enumerate(zip(data.images, data.labels))
    }
    square = data.images.shape[-1] == data.images.shape[-2]
    assert not square or len(book) == 4 * len(data.images), "pictures are not told apart"
    return book


def patterns(classes: int = 16, each: int = 8, side: int = 4) -> LabelledImages:
    """Classes that can be learnt: a class is a few bright pixels, its pictures are noisy."""
    random = np.random.default_rng(0)
    ink = random.random((classes, 1, 1, side, side)) < 0.4
    pixels = 200 * ink + random.integers(0, 56, (classes, each, 1, side, side))
    third = classes // 4
    return LabelledImages(
        torch.as_tensor(pixels.reshape(-1, 1, side, side).astype(np.uint8)),
        torch.arange(classes).repeat_interleave(each),
        tuple(f"pattern{c}" for c in range(classes)),
        ("all",) * classes,
        {
            "train": tuple(range(2 * third)),
            "validation": tuple(range(2 * third, 3 * third)),
            "test": tuple(range(3 * third, classes)),
        },
    )


class Poisoned:
    """Tasks, some of which (training alone) have a support set of NaN."""

    def __init__(self, tasks: Any, bad: Sequence[int]) -> None:
        self.tasks, self.bad = tasks, set(bad)
        self.kind, self.input_shape, self.outputs = tasks.kind, tasks.input_shape, tasks.outputs

    def sample(
        self, split: Split, indices: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> TaskBatch:
        batch: TaskBatch = self.tasks.sample(split, indices, device=device)
        for row, index in enumerate(indices):
            if split == "train" and index in self.bad:
                batch.support[0][row] = torch.nan
        return batch


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, dict[str, float]]] = []
        self.drawn: list[tuple[int, str, Figure]] = []
        self.distributions: list[tuple[int, str, dict[str, Tensor]]] = []
        self.rows: list[tuple[dict[str, Any], dict[str, float]]] = []
        self.flushes = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.numbers.append((step, dict(values)))

    def histograms(self, step: int, name: str, tensors: Mapping[str, Tensor]) -> None:
        copies = {leaf: value.detach().clone() for leaf, value in tensors.items()}
        self.distributions.append((step, name, copies))

    def figure(self, step: int, name: str, figure: Figure) -> None:
        self.drawn.append((step, name, figure))

    def curves(self, step: int, name: str, values: Mapping[str, float]) -> None:
        self.numbers.append((step, {f"{name}/{key}": value for key, value in values.items()}))

    def hparams(self, settings: Mapping[str, Any], results: Mapping[str, float]) -> None: ...

    def member_hparams(
        self, settings: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, float]]
    ) -> None:
        self.rows = [(dict(given), dict(numbers)) for given, numbers in zip(settings, results)]

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None: ...

    def steps(self, name: str) -> list[int]:
        """Steps at which ``name`` was recorded."""
        return [step for step, values in self.numbers if name in values]

    def series(self, name: str) -> list[float]:
        return [values[name] for _, values in self.numbers if name in values]


class Scripted(Trainer):
    """A trainer whose gradients and validations are written down beforehand.

    Validation i gives ``scores[i]``, or the last one; a step's gradient is drawn from its number.
    """

    def __init__(
        self,
        scores: Sequence[float] = (0.5,),
        *,
        larger: bool = True,
        gradient_of: Callable[[int, Tensor], Tensor] | None = None,
        module: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        apart = ("optimizer", "tracker", "folder", "ranks", "callbacks", "beside")
        rest = {key: settings.pop(key) for key in apart if key in settings}
        module = module or linear()
        device = place(module, settings.pop("device", "cpu"))
        limits = LoopSettings(**settings)
        self.objective = ScriptedObjective(gradient_of or drawn_gradient)
        self.scores = list(scores)
        evaluator = ScriptedEvaluator(self.scores, larger, limits.eval_every)
        super().__init__(
            assemble(module, self.objective, evaluator, settings=limits, device=device, **rest)
        )

    @property
    def seen(self) -> list[int]:
        return self.objective.seen


class ScriptedObjective(Stateless):
    unit = "samples"

    def __init__(self, gradient_of: Callable[[int, Tensor], Tensor]) -> None:
        self.gradient_of = gradient_of
        self.loss_of: Callable[[int], float] = lambda step: 1.0 / (1 + step)
        self.seen: list[int] = []

    def prepare(self) -> None:
        return

    def batch(self, step: int) -> int:
        return step

    def gradient(self, params: Params, batch: int, *, step: int) -> StepGradient:
        self.seen.append(step)
        grads = {name: self.gradient_of(step, value) for name, value in params.items()}
        losses = next(iter(params.values())).new_tensor([self.loss_of(step)])
        return StepGradient(grads, losses, 4, 4, suspects=lambda: f"step {step}'s own")

    def unused_parameters(self) -> list[str]:
        return []

    def records(self, batch: Any, gradient: StepGradient, *, step: int) -> dict[str, float]:
        return {}


class ScriptedEvaluator(Stateless):
    monitor = "validation/score"
    bands: Mapping[str, Sequence[str]] = {}

    def __init__(self, scores: list[float], larger: bool, every: int) -> None:
        self.scores, self.larger_is_better, self.every = scores, larger, every

    def __call__(self, step: int) -> Evaluation:
        done = -(-step // self.every)
        score = self.scores[min(done, len(self.scores) - 1)]
        return Evaluation({self.monitor: score}, torch.tensor([score], dtype=torch.float64))


def drawn_gradient(step: int, value: Tensor) -> Tensor:
    """Depends on the step and on the parameter, so a step left out or doubled shows."""
    generator = torch.Generator().manual_seed(step)
    return value + torch.randn(value.shape, generator=generator).to(value)


def linear(seed: int = 0) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, 3, 2)  # its own draws would be global ones
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return layer


def sinusoid_trainer(**settings: Any) -> MetaTrainer:
    tasks = settings.pop("tasks", None) or SinusoidTasks(shot=4, query=4)
    settings = {"steps": 6, "meta_batch": 4, "validation_tasks": 5, "progress": False} | settings
    settings.setdefault("maml", MAML(inner_lr=0.02, eval_steps=2))
    return MetaTrainer(MLP((1,), 1, hidden=(8,)), tasks, **settings)


def episode_trainer(**settings: Any) -> MetaTrainer:
    tasks = settings.pop("tasks", None) or FewShotTasks(patterns(), way=3, shot=1, query=2)
    settings = {"steps": 6, "meta_batch": 4, "validation_tasks": 5, "progress": False} | settings
    settings.setdefault("maml", MAML(inner_lr=0.2, eval_steps=2))
    return MetaTrainer(MLP((1, 4, 4), 3, hidden=(8,)), tasks, **settings)


def samples(classes: int = 3, each: int = 20, side: int = 4) -> ClassificationData:
    """Noisy pictures of a few classes that can be learnt, most of them for training."""
    pictures = patterns(classes=4 * classes, each=each, side=side)
    known = pictures.labels < classes
    labels = pictures.labels[known]
    order = torch.arange(classes * each).reshape(classes, each)
    train, validation, test = order.split([each - 2 * (each // 4), each // 4, each // 4], dim=1)
    return ClassificationData(
        pictures.images[known],
        labels,
        tuple(pictures.class_names[:classes]),
        {
            "train": train.flatten(),
            "validation": validation.flatten(),
            "test": test.flatten(),
        },
    )


def ensemble_trainer(**settings: Any) -> EnsembleTrainer:
    """Three small networks, on the engine whose arithmetic does not depend on a measurement."""
    data = settings.pop("data", None) or samples()
    model = settings.pop("model", None) or Ensemble.from_factory(
        lambda seed: MLP(data.input_shape, data.outputs, hidden=(8,), seed=seed), range(3)
    )
    settings = {"steps": 6, "batch_size": 8, "progress": False, "engine": "batched"} | settings
    return EnsembleTrainer(model, data, **settings)


def without_ensemble_figures(patch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of tiny runs."""
    room = "metalearn.trainers.supervised"
    drawing = ("evaluation.draw_validation", "training.draw_sweeps", "training.draw_uncertainty")
    for name in drawing:
        patch.setattr(f"{room}.ensemble_{name}", lambda *given: None)


def batch_of(trainer: Any, step: int) -> Any:
    """The batch of a step."""
    return trainer.loop.objective.batch(step)


def source_of(trainer: Any) -> Any:
    """What diagnostics look at."""
    return getattr(getattr(trainer, "training", trainer), "source", trainer)


def extra_state(trainer: Any) -> dict[str, Any]:
    """What the parts of a trainer keep in a checkpoint, that of diagnostics beside it."""
    loop, found = trainer.loop, {}
    for part in (loop.population, loop.objective, loop.evaluator, *loop.callbacks):
        found |= part.state()
    return found


def before_gradient(trainer: Any, act: Callable[[int], object]) -> None:
    """Make something happen in each step, before its gradient is taken."""
    objective = trainer.loop.objective
    original = objective.gradient

    def gradient(*given: Any, **named: Any) -> Any:
        act(named["step"])
        return original(*given, **named)

    objective.gradient = gradient


def after_gradient(trainer: Any, act: Callable[[int, Any], object]) -> None:
    """The same, after it has been taken: ``act`` gets the step and its `StepGradient`."""
    objective = trainer.loop.objective
    original = objective.gradient

    def gradient(*given: Any, **named: Any) -> Any:
        found = original(*given, **named)
        act(named["step"], found)
        return found

    objective.gradient = gradient


def before_validation(trainer: Any, act: Callable[[], object]) -> None:
    """Make something happen at the beginning of each validation."""
    original = trainer.loop.evaluator

    class Wrapped:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(original, attribute)

        def __call__(self, *given: Any) -> Any:
            act()
            return original(*given)

    trainer.loop.evaluator = Wrapped()


def after_validation(trainer: Any, change: Callable[[Evaluation], Evaluation]) -> None:
    """Put something else in the place of what each validation finds."""
    evaluator = trainer.loop.evaluator

    class Changed:
        def __getattr__(self, attribute: str) -> Any:
            return getattr(evaluator, attribute)

        def __call__(self, step: int) -> Evaluation:
            return change(evaluator(step))

    trainer.loop.evaluator = Changed()


def signal_in_step(trainer: Any, step: int, number: int) -> None:
    """Make the trainer send its own process a signal in the middle of a step."""
    before_gradient(trainer, lambda now: os.kill(os.getpid(), number) if now == step else None)


def assert_goes_on(make: Callable[..., Any], folder: Path) -> Any:
    """A training that a signal stops in its second step ends as one that is not, which is returned.

    Args:
        make: gives a trainer, with further settings.
        folder: of the run.
    """
    whole = make()
    whole.fit()
    stopped, resumed = make(folder=folder), make(folder=folder)
    signal_in_step(stopped, 1, signal.SIGTERM)
    assert stopped.fit().step == 2
    resumed.resume(last(folder))
    resumed.fit()
    assert_same(state_of(resumed), state_of(whole))
    return whole


def signal_in_validation(trainer: Any, number: int) -> None:
    """The same in the middle of the next validation."""
    left = [number]
    before_validation(trainer, lambda: os.kill(os.getpid(), left.pop()) if left else None)


def state_of(trainer: Any) -> dict[str, Any]:
    """All that a checkpoint holds but the time spent."""
    found = {
        "step": trainer.step,
        "module": trainer.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }
    if trainer.loop.beside is not None:
        found["learnt"] = trainer.loop.beside.state_dict()
    population = trainer.loop.population
    return {**found, **population.summary(), "best": population.best}


def without_times(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint or results but for the time that was spent."""
    return {name: value for name, value in state.items() if name not in ("seconds", "cpu_seconds")}


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Equal to the last bit, tensors and all, through dicts, lists and tuples."""
    assert type(one) is type(other), where
    if isinstance(one, Mapping):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other or (one != one and other != other), where


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.pt"
