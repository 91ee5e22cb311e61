"""Supervised training in which a step is made of the gradients of single samples.

Axes: N samples of a batch or a split, C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn.core import clipped_gradient, functionalize, per_sample_module
from metalearn.core.autodiff.products import check_mode
from metalearn.core.checks import check_number, module_takes
from metalearn.core.chunking import ChunkSize
from metalearn.core.loss_checks import checked_to_reach, unused_parameters
from metalearn.core.samples.checks import BatchNormPolicy
from metalearn.core.samples.clipping import clipped_chunk
from metalearn.core.samples.gradients import SampleMethod, one_gradient
from metalearn.core.tree import check_tensors, tree_map
from metalearn.data import Augmentation, ClassificationData, MemberBatches, augment
from metalearn.errors import SettingError, check_whole
from metalearn.evaluation import EnsembleReport, fit_temperature
from metalearn.models import Dropout
from metalearn.random_streams import AddressedStream, check_split
from metalearn.schema import Kind, mapping, maybe, text, whole
from metalearn.signatures import checked
from metalearn.tracking import NullTracker, Tracker, reliability_figure
from metalearn.trainers.base import OptimizerFactory, StepReport, Trainer
from metalearn.trainers.data_scores import logits_of, report_of
from metalearn.trainers.diagnostics import (
    DiagnosisData,
    DiagnosticSource,
    GradientUnits,
    ModelSource,
    PredictiveModels,
    batch_dependence,
    sample_blocks,
)
from metalearn.trainers.loop.settings import LoopSettings
from metalearn.trainers.nan_scores import check_members
from metalearn.trainers.planning import SamplePlan
from metalearn.trainers.sample_reports import EnsembleTest
from metalearn.types import Batch, Params, Split

__all__ = ["PerSampleTrainer"]

log = logging.getLogger(__name__)

Monitor = Literal["loss", "accuracy"]


class PerSampleTrainer(Trainer):
    """Trains one module on labelled data, each sample's gradient clipped before they are averaged.

    The gradient of a step is (1/N)·(Σ_i g_i·min(1, C/‖g_i‖) + σ·C·z), C the ``max_norm``, σ the
    ``noise_multiplier``, z standard normal: with σ > 0 the update of DP-SGD (Abadi et al., "Deep
    Learning with Differential Privacy", CCS 2016). **No privacy is accounted for**: batches come
    from shuffled epochs, not from Poisson sampling, no ε is computed, noise is drawn from a seeded
    generator, and validation reads private data. With C = ∞ it is ordinary training.

    Args:
        model: outputs ``[N, C]``; trained in place, or a copy of it where ``batch_norm`` is set
            (see ``trainer.module``).
        data: labelled samples in three splits.
        seed: of the order of samples, augmentation, dropout masks and noise.
        steps: in all.
        batch_size: N.
        max_norm: C, above 0; infinity clips nothing.
        noise_multiplier: σ, at least 0; above 0 it needs a finite C.
        batch_norm: what to make of BatchNorm: ``"groupnorm"``, or ``"eval"`` (running statistics,
            never updated); None refuses it.
        chunk_size: samples at a time; None takes all, ``"auto"`` as many as memory has room for,
            decided once (with ``deterministic``: all).
        method: of per-sample gradients, see `metalearn.core.per_sample_gradients`; ``"loop"`` takes
            modules that vmap cannot take.
        max_shift, flip, rotate: augmentation of pictures; see `metalearn.data.Augmentation`.
        monitor: what decides which state is best, on the validation split.
        diagnostics: what to show of the gradients; see `metalearn.trainers.diagnostics`.
        optimizer: makes the optimiser from the parameters; Adam with rate 1e-3 by default.
        tracker: where numbers and figures go.
        folder: of the run, for checkpoints.
        device: where to train.
        settings: the rest of `LoopSettings` by name; ``clip`` is that of the mean gradient.

    Raises:
        SettingError: a setting out of range, a model whose samples depend on each other or that
            does not fit the data.
    """

    unit = "samples"
    ensemble = None

    @checked
    def __init__(
        self,
        model: nn.Module,
        data: ClassificationData,
        *,
        seed: int = 0,
        steps: int = 1000,
        batch_size: int = 64,
        max_norm: float = 1.0,
        noise_multiplier: float = 0.0,
        batch_norm: BatchNormPolicy | None = None,
        chunk_size: ChunkSize = None,
        method: SampleMethod = "layers",
        max_shift: int = 0,
        flip: bool = False,
        rotate: float = 0.0,
        monitor: Monitor = "loss",
        diagnostics: Sequence[str] = ("gradient_norms", "gradient_variance", "noise_scale"),
        optimizer: OptimizerFactory | None = None,
        tracker: Tracker | None = None,
        folder: str | Path | None = None,
        device: torch.device | str = "cpu",
        **settings: Annotated[Any, LoopSettings],
    ) -> None:
        _check(max_norm, noise_multiplier, monitor, chunk_size)
        check_mode("method", method, get_args(SampleMethod))
        if batch_norm is not None:
            model = per_sample_module(model, batch_norm=batch_norm)
        else:
            model.train()
        reason = batch_dependence(model)
        if reason:
            raise SettingError("model", type(model).__name__, f"{reason} (batch_norm=groupnorm)")
        super().__init__(
            model,
            LoopSettings(steps=steps, diagnostics=diagnostics, **settings),
            optimizer=optimizer,
            tracker=tracker,
            folder=folder,
            device=device,
        )
        check_whole("seed", seed, 0, 2**63 - 1)
        self.data, self.seed = data, seed
        self.max_norm, self.noise_multiplier = float(max_norm), float(noise_multiplier)
        self.chunk_size, self.method = chunk_size, method
        self.monitor = "validation/accuracy" if monitor == "accuracy" else "validation/nll"
        self.larger_is_better = monitor == "accuracy"
        self.apply, self.params, self.buffers = functionalize(
            self.module, vectorize=method != "loop"
        )
        self._modes = [(layer, layer.training) for layer in self.module.modules()]
        self.batches = MemberBatches(data.splits["train"], batch_size=batch_size, seeds=[seed])
        self.augmentation = Augmentation(max_shift=max_shift, flip=flip, rotate=rotate)
        self._norms: Tensor | None = None
        self.plan: SamplePlan | None = None
        self._check_outputs()
        dropouts = [layer for layer in self.module.modules() if isinstance(layer, Dropout)]
        for number, layer in enumerate(dropouts):
            layer.key.copy_(torch.tensor(seed) * 65537 + number)
        self.begin_diagnostics()

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch ``(inputs, targets)`` at given parameters, a scalar."""
        inputs, targets = batch
        return F.cross_entropy(self.apply(params, self.buffers, inputs), targets)

    def prepare(self) -> None:
        """Decide how many samples are taken at a time."""
        if self.plan is None:
            self.plan = self._planned()
            if self.chunk_size == "auto":
                log.info("%s", self.plan)

    def gradient(self, step: int) -> StepReport:
        """Mean of the clipped gradients of step ``step``, with noise where it is asked for."""
        self.prepare()
        assert self.plan is not None
        self._train()
        batch = self._batch(step)
        count = len(batch[1])
        if math.isinf(self.max_norm):
            self._norms = None
            if self.method == "loop":
                grads = one_gradient(self.loss, self.params, batch)
                with torch.no_grad():
                    loss = self.loss(self.params, batch)
            else:
                grads, loss = torch.func.grad_and_value(checked_to_reach(self.loss))(
                    self.params, batch
                )
        else:
            found = clipped_gradient(
                self.loss,
                self.params,
                batch,
                max_norm=self.max_norm,
                chunk_size=self.plan.chunk_size,
                method=self.method,
            )
            grads, self._norms = self._noisy(found.grads, step, count), found.norms
            loss = found.losses.detach().mean()
        return StepReport(loss, grads, count, lambda: f"batch {step} of the training part")

    def unused_parameters(self) -> list[str]:
        """Those of the loss of the first batch; they get no noise either."""
        self._train()
        return unused_parameters(self.loss, self.params, self._batch(0))

    def validate(self) -> Mapping[str, float]:
        """Scores on the validation split."""
        report = self._report("validation")
        if not isinstance(self.tracker, NullTracker):
            title = f"validation, step {self.step}"
            figure = reliability_figure(report.reliability, title=title)
            self.tracker.figure(self.step, "validation/reliability", figure)
        return {f"validation/{name}": value for name, value in report.member(0).items()}

    def log_training(self, step: int, report: StepReport) -> Mapping[str, float]:
        """How many samples were clipped."""
        if self._norms is None:
            return {}
        clipped = (self._norms > self.max_norm).double().mean()
        return {"train/clipped_fraction": float(clipped)}

    @checked
    def test(self, *, split: Split = "test") -> EnsembleTest:
        """Scores on a split as the module stands (of one member), and temperature."""
        check_split(split)
        logits, targets = logits_of(self.predict, self.data, "validation", device=self.device)
        check_members(logits, "validation")
        temperature = fit_temperature(logits, targets, pooling="pool_then_scale")
        report = self._report(split)
        check_members(report.members.accuracy, split)
        return EnsembleTest(split, report, temperature, {})

    def reports(
        self, split: Split = "test", *, tasks: int = 600, inductive: bool = True
    ) -> dict[str, EnsembleTest]:
        """See `Trainer.reports`: one `test`, under the name of the split."""
        return {split: self.test(split=split)}

    @torch.no_grad()
    @checked
    def predict(self, inputs: Tensor) -> Tensor:
        """Logits ``[1, N, C]`` in evaluation mode."""
        self._stop.check()
        check_tensors(inputs, "inputs")
        self.module.eval()
        with module_takes("inputs", inputs):
            logits: Tensor = self.apply(self.params, self.buffers, inputs.to(self.device))
        self._train()
        return logits[None]

    def extra_state(self) -> dict[str, Any]:
        """How gradients are taken, so that a resumed run goes on in the same way."""
        if self.plan is None:
            return {}
        return {"plan": {"chunk_size": self.plan.chunk_size, "device": self.device.type}}

    def extra_kinds(self) -> list[Kind]:
        """The plan, where there is one."""
        plan = mapping({"chunk_size": maybe(whole(1)), "device": text})
        return [*super().extra_kinds(), mapping({}, {"plan": maybe(plan)})]

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan of the run, unless it was made for another kind of device."""
        plan = state.get("plan")
        if plan and plan["device"] == self.device.type and self.chunk_size == "auto":
            self.plan = SamplePlan(plan["chunk_size"], "as before the interruption")
            log.info("%s", self.plan)

    def diagnostic_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        return self._batch(step)

    def diagnostic_kinds(self) -> Mapping[str, str]:
        """Samples, and what the module predicts."""
        return {"sample": "", "predictive": "", "loss": ""}

    def gradient_units(self, kind: str, batch: Any, grads: Mapping[str, Tensor]) -> GradientUnits:
        """The samples of a step, before clipping."""
        x, y = batch

        def blocks() -> Iterator[Iterator[Mapping[str, Tensor]]]:
            shown = (x[None], y[None])
            return sample_blocks(lambda _: self.loss, self._alone(), {}, shown, method=self.method)

        return GradientUnits("sample", blocks, len(y), self.max_norm)

    def predictive_models(self, batch: Any) -> Iterator[PredictiveModels]:
        """The module on the samples of a step, as one model."""
        shown = tree_map(lambda x: x[None], batch)
        yield PredictiveModels(self._outputs, self._alone(), {}, shown, "categorical")

    def diagnosis_sources(self, data: DiagnosisData) -> Iterator[tuple[str, DiagnosticSource]]:
        """The module on samples of a split, in evaluation mode."""
        indices = self.data.splits[data.split][: data.samples]
        batch = self.data.take(indices, device=self.device)
        self.module.eval()
        for models in self.predictive_models(batch):
            yield "network", ModelSource(models, self.module, data.models_at_once)

    def _outputs(self, extra: Any) -> Any:
        return lambda params, inputs: self.apply(params, self.buffers, inputs)

    def _alone(self) -> dict[str, Tensor]:
        """Parameters as those of one model, ``[1, ...]``."""
        return {name: value[None] for name, value in self.params.items()}

    def _noisy(self, grads: Params, step: int, count: int) -> Params:
        if not self.noise_multiplier:
            return grads
        drawn = AddressedStream(self.seed, "noise", step).with_replacement(2**62, 1)
        generator = torch.Generator().manual_seed(int(drawn[0]))
        size = self.noise_multiplier * self.max_norm / count
        return {
            name: grad + size * torch.randn(grad.shape, generator=generator).to(grad)
            for name, grad in grads.items()
        }

    def _planned(self) -> SamplePlan:
        if self.chunk_size != "auto":
            return SamplePlan(self.chunk_size)
        if self.settings.deterministic or math.isinf(self.max_norm):
            return SamplePlan(None, "nothing measured")
        self._train()
        batch = self._batch(0)
        size = clipped_chunk(self.loss, self.params, batch, method=self.method)
        whole = size is None or size >= len(batch[1])
        return SamplePlan(None if whole else size, "as many as memory has room for")

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        x, y = self.data.take(self.batches.indices(step), device=self.device)
        return augment(x, self.augmentation, seeds=[self.seed], step=step), y

    def _report(self, split: Split) -> EnsembleReport:
        return report_of(self.predict, self.data, split, members=1, device=self.device)

    def _train(self) -> None:
        """Every layer in the mode it is trained in."""
        for layer, training in self._modes:
            layer.training = training

    def _check_outputs(self) -> None:
        """Run two samples through the module before any training."""
        name, shape = type(self.module).__name__, list(self.data.input_shape)
        x, _ = self.data.take(self.data.splits["train"][:2], device=self.device)
        try:
            got = list(self.predict(x)[0].shape)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            accepted = f"inputs {shape} are what it gets ({reason})"
            raise SettingError("model", name, accepted) from error
        try:
            with torch.no_grad():
                self.apply(self.params, self.buffers, x[:1])
        except (RuntimeError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            accepted = f"a sample alone is what it gets in training ({reason})"
            raise SettingError("model", name, accepted) from error
        wanted = [2, self.data.outputs]
        if got != wanted:
            raise SettingError("model", name, f"outputs {wanted} are needed, not {got}")


def _check(max_norm: float, noise: float, monitor: str, chunk_size: ChunkSize) -> None:
    accepted = "a number above 0 is needed, or infinity"
    check_number("max_norm", max_norm, above=0, infinite=True, accepted=accepted)
    check_number("noise_multiplier", noise, least=0)
    if noise and math.isinf(max_norm):
        raise SettingError("noise_multiplier", noise, "noise needs a finite max_norm")
    if monitor not in get_args(Monitor):
        raise SettingError("monitor", monitor, f"one of {', '.join(get_args(Monitor))} is needed")
    if chunk_size is not None and chunk_size != "auto":
        check_whole("chunk_size", chunk_size, 1)
