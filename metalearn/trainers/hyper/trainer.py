"""Training of what shapes training runs, assembled from its parts.

Axes: K steps of a run, N examples of the training part, R whole runs, C outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import Unpack

from metalearn.core import HyperMethod, ImplicitSolver
from metalearn.core.checks import as_device
from metalearn.core.module.copying import copy_module
from metalearn.data.regression import SupervisedData
from metalearn.errors import check_whole
from metalearn.random_streams import check_split
from metalearn.ranks import OneRank, Ranks
from metalearn.signatures import checked
from metalearn.tracking import TrackerChoice
from metalearn.trainers.hyper.combinations import GradientSettings, check_combination
from metalearn.trainers.hyper.evaluation import HyperEvaluator
from metalearn.trainers.hyper.gradient_check import GradientCheck
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues
from metalearn.trainers.hyper.objective import HyperObjective
from metalearn.trainers.hyper.outer_batches import divided_validation, outer_batches
from metalearn.trainers.hyper.registry import made_hyper
from metalearn.trainers.hyper.reports import HyperTest
from metalearn.trainers.hyper.run_settings import RunSettings
from metalearn.trainers.hyper.runs import Factory, InnerRuns
from metalearn.trainers.loop.assembly import assemble, check_values, place
from metalearn.trainers.loop.options import LoopOptions
from metalearn.trainers.loop.outer_optimizer import OptimizerFactory
from metalearn.trainers.loop.result import FitResult
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.supervised.ensemble_settings import check_monitor
from metalearn.trainers.supervised.losses import LossSetting, chosen_loss
from metalearn.trainers.supervised.metrics import with_measures
from metalearn.trainers.supervised.model_evaluation import Monitor
from metalearn.trainers.supervised.predictions import SplitReport, report_of, shared_by
from metalearn.trainers.supervised.scoring import check_outputs, score_split
from metalearn.trainers.trainer import Trainer
from metalearn.types import Split

__all__ = ["HyperTrainer"]

log = logging.getLogger(__name__)

_LARGEST_SEED = 2**62


class HyperTrainer(Trainer):
    """Trains what shapes the training runs of a network: see `HYPER_KINDS` for what that may be.

    An outer step takes K steps of a run on the training part, then the gradient through it of the
    mean loss on samples of the validation part: ``trainer.module`` holds what is learnt. **Which
    samples decide what**: every other validation sample of each class is in the outer loss; the
    other half alone scores networks that whole runs train with what has been learnt so far, which
    chooses the best state. Test samples choose nothing.

    Args:
        model: the network, left as it is; in training mode in the steps of a run.
        data: samples in three splits.
        hyper: what is learnt: a name of `HYPER_KINDS`, or what makes a `HyperModule` of a
            `RunSetup`.
        factory: makes networks like the model of seeds, for runs that start afresh and for further
            whole runs; None has every run start at the model.
        inner: the runs: `RunSettings`, or a mapping of them.
        seed: of orders of batches and of fresh starts.
        steps: outer steps in all.
        outer_batch: samples of the outer loss; None takes all of their half.
        method, truncation, memory, implicit: of the gradient; see `metalearn.core.hyper_gradient`.
            Settings of `ImplicitSolver` may be a mapping.
        loss: as of `PerSampleTrainer`.
        monitor: what decides which state is best, on the second half of the validation part; with
            ``"loss"`` it is a ``loss`` that is no likelihood, where one is trained with.
        check: at the end of the training hold the gradient of one more outer step against two runs
            a little to either side: ``trainer.checked``, in the records and in the test, with a
            warning in the log where what was learnt should not be trusted.
        optimizer: makes the outer optimiser from the parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go; names, such as ``"csv"``, are those of `RunTracker`
            and need ``folder``.
        folder: of the run, for checkpoints.
        device: where to train.
        ranks: processes that share the training, each with some of the samples of every step of a
            run and of the outer loss; None is one process. See `metalearn.ranks.joined`.
        settings: the rest of `LoopSettings` by name.

    Raises:
        SettingError: a setting out of range, or one that another leaves without a use.
    """

    makes_module: ClassVar[tuple[str, ...]] = (
        "loss", "inner.steps", "inner.optimizer", "inner.start",
    )  # fmt: skip

    @checked
    def __init__(
        self,
        model: nn.Module,
        data: SupervisedData,
        *,
        hyper: str | Callable[[RunSetup], HyperModule] = "example_weights",
        factory: Factory | None = None,
        inner: RunSettings | Mapping[str, Any] | None = None,
        seed: int = 0,
        steps: int = 200,
        outer_batch: int | None = None,
        method: HyperMethod = "auto",
        truncation: int | None = None,
        memory: str | int | None = None,
        implicit: ImplicitSolver | Mapping[str, Any] | None = None,
        loss: LossSetting = None,
        monitor: Monitor = "loss",
        check: bool = True,
        optimizer: OptimizerFactory | None = None,
        tracker: TrackerChoice | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        **settings: Unpack[LoopOptions],
    ) -> None:
        check_whole("seed", seed, 0, _LARGEST_SEED)
        check_monitor(monitor, data)
        self._check, self._seed = check, seed
        self.checked: GradientCheck | None = None
        limits, run = LoopSettings(steps=steps, **settings), RunSettings.of(inner)
        asked: Any = {"truncation": truncation, "memory": memory, "implicit": implicit}
        how = GradientSettings.of(method, run.steps, **asked)
        self.data, where = data, as_device(device)
        check_values(model)
        self._model = copy_module(model).to(where)
        outer, self._scored = divided_validation(data)
        rest: Any = {"device": where, "stop": StopSignal(), "ranks": ranks or OneRank()}
        chosen = chosen_loss(loss, data)
        self._runs = InnerRuns(self._model, factory, data, chosen, settings=run, seed=seed, **rest)
        self._check_outputs()
        module = made_hyper(hyper, self._runs.setup())
        self._plain = module.plain()
        check_combination(module.current(), run, how, limits)
        if run.start == "warm":
            module.carried = self._runs.carried(module.current())
        place(module, where)
        batches = outer_batches(data, outer, outer_batch, seed, where)
        self.objective = HyperObjective(module, self._runs, batches, how)
        evaluator = with_measures(
            HyperEvaluator(self._validated, self._figure, monitor),
            lambda inputs: self._runs_validated(inputs),
            self._scored, metrics={}, loss=chosen, monitor=monitor, device=where, together=True,
        )  # fmt: skip
        rest |= {"tracker": tracker, "folder": folder, "settings": limits}
        super().__init__(assemble(module, self.objective, evaluator, optimizer=optimizer, **rest))

    def fit(self) -> FitResult:
        """See `Trainer.fit`; a training that has come to its end is checked then."""
        before = self.step
        result = super().fit()
        if self._check and self.finished and result.signal is None and self.step > before:
            self.checked = self.objective.checked(self.step, self._seed)
            names = ("error", "predicted", "measured")
            numbers = {f"hyper/check_{n}": getattr(self.checked, n) for n in names}
            self.tracker.scalars(self.step, numbers)
            self.tracker.flush()
            if self.checked.warning:
                log.warning("%s", self.checked.warning)
        return result

    def train_network(self, index: int = 0, *, plain: bool = False) -> nn.Module:
        """A copy of the model, trained by a whole run with what has been learnt as it stands.

        Args:
            index: which of the whole runs; any number of them may be made.
            plain: an ordinary run instead, from the same start and with the same batches.
        """
        check_whole("index", index, 0, _LARGEST_SEED)
        made = copy_module(self._model)
        ends = self._runs.whole(self._hyper, self._values(plain), index)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name in ends:
                    parameter.copy_(ends[name])
        return made.eval()

    def test(self, *, split: Split = "test") -> HyperTest:
        """Scores on a split of networks trained with what has been learnt, and by ordinary runs.

        Temperatures are fitted on the half of the validation part that shaped nothing, which is
        also what ``split="validation"`` scores.
        """
        check_split(split)
        how: Any = {"members": self._count, "device": self.device}
        learnt, plain = (
            score_split(self._predict(values), self._scored, split, **how)
            for values in (self._values(False), self._plain)
        )
        return HyperTest(learnt, plain, self.checked)

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool | None = True
    ) -> dict[str, HyperTest]:
        """See `Trainer.reports`: one `test`, under the name of the split."""
        return {split: self.test(split=split)}

    @property
    def _hyper(self) -> HyperModule:
        return self.objective.hyper

    @property
    def _count(self) -> int:
        """R."""
        return self._runs.settings.whole_runs

    def _values(self, plain: bool) -> RunValues:
        return self._plain if plain else self._hyper.current()

    def _predict(self, values: RunValues) -> Callable[[Tensor], Tensor]:
        """Outputs ``[R, N, C]`` of the networks of whole runs."""
        runs = self._runs
        ends = [runs.whole(self._hyper, values, index) for index in range(self._count)]

        @torch.no_grad()
        def predict(inputs: Tensor) -> Tensor:
            x = runs.placed(inputs)
            return torch.stack([runs.network.evaluated(params, x) for params in ends])

        return shared_by(runs.ranks, predict, runs.stop)

    def _validated(self) -> SplitReport:
        self._runs_validated = self._predict(self._hyper.current())
        how: Any = {"members": self._count, "device": self.device}
        return report_of(self._runs_validated, self._scored, "validation", **how)

    def _figure(self, title: str) -> Figure | None:
        return self._hyper.figure(self._hyper.current(), self._plain, title)

    def _check_outputs(self) -> None:
        """Run two samples through the network before any run."""
        runs, network = self._runs, self._runs.network

        @torch.no_grad()
        def predict(inputs: Tensor) -> Tensor:
            return network.evaluated(network.params, runs.placed(inputs))[None]

        name = type(self._model).__name__
        how: Any = {"members": None, "device": runs.device, "weighted": True}
        check_outputs(name, predict, self.data, runs.loss, **how)
