"""The objective of a training by per-sample gradients: each clipped, noise on their sum.

Axes: N samples of a batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metalearn.core import ClippedGradient, clipped_gradient
from metalearn.core.chunking import ChunkSize
from metalearn.core.float64 import widest
from metalearn.core.loss_checks import checked_to_reach, unused_parameters
from metalearn.core.samples.clipping import clipped_chunk
from metalearn.core.samples.clipping_groups import (
    Clipping,
    ParameterGroups,
    check_clipping,
    group_numbers,
)
from metalearn.core.samples.gradients import SampleMethod, one_gradient
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream
from metalearn.ranks import Share, check_enough
from metalearn.schema import Kind, mapping, maybe, text, whole
from metalearn.trainers.loop.pure_calls import PureCalls, as_it_is
from metalearn.trainers.loop.step import StepGradient
from metalearn.trainers.supervised.batches import LabelledBatch, check_parts, samples_of_rank
from metalearn.trainers.supervised.member_weights import ExampleWeights, same_weights
from metalearn.trainers.supervised.plans import SamplePlan
from metalearn.trainers.supervised.pure_model import PureModel
from metalearn.types import LossFn, Params

__all__ = ["PerSampleObjective"]

log = logging.getLogger(__name__)


class PerSampleObjective:
    """The gradient (1/B)·(Σ_i g_i·min(1, C/‖g_i‖) + σ·C·z) of a batch of N samples.

    N may vary, and be 0, where batches are drawn by chance; B stays. Where N is always B it is the
    mean of the clipped gradients.

    Args:
        model: whose parameters are trained.
        batches: from a step to its inputs and targets.
        expected: B, of the whole batch where ranks share it.
        max_norm: C; infinity clips nothing.
        noise_multiplier: σ.
        clipping: how samples are clipped, see `metalearn.core.clipped_gradient`.
        groups: of parameters that are clipped by themselves, see there.
        seed: of the noise, together with the step.
        chunk_size: samples at a time; ``"auto"`` is decided once.
        method: of per-sample gradients.
        deterministic: measure nothing for the decision.
        criterion: mean loss of outputs ``[N, C]``, targets and, where samples are weighted, their
            weights ``[N]``; cross-entropy by default.
        weights: of the examples, which `batches` gives; their checksum is saved.
    """

    unit = "samples"
    divides_members = False

    def __init__(
        self,
        model: PureModel,
        batches: Callable[[int], LabelledBatch],
        *,
        expected: int,
        max_norm: float,
        noise_multiplier: float,
        seed: int,
        clipping: Clipping = "flat",
        groups: ParameterGroups = "all",
        chunk_size: ChunkSize = None,
        method: SampleMethod = "layers",
        deterministic: bool = False,
        criterion: Callable[..., Tensor] = F.cross_entropy,
        weights: ExampleWeights | None = None,
    ) -> None:
        self.model, self.batches, self.expected = model, batches, expected
        self.max_norm, self.noise_multiplier, self.seed = max_norm, noise_multiplier, seed
        self.chunk_size, self.method, self.deterministic = chunk_size, method, deterministic
        self.clipping, self.groups = check_clipping(clipping), groups
        try:
            group_numbers(model.params, groups)
        except SettingError as error:
            name = f"clip_{error.setting}"
            raise SettingError(name, error.value, error.accepted) from error
        self.criterion, self.weights = criterion, weights
        self.plan: SamplePlan | None = None
        self._share = Share()
        self.pure: PureCalls | None = as_it_is

    def loss(self, params: Params, batch: LabelledBatch) -> Tensor:
        """Mean loss of a batch at given parameters, a scalar."""
        inputs, *rest = batch
        return self.criterion(self.model.outputs(params, inputs), *rest)

    def prepare(self) -> None:
        """Decide how many samples are taken at a time."""
        if self.plan is None:
            self.plan = self._planned()
            if self.chunk_size == "auto":
                log.info("%s", self.plan)

    def batch(self, step: int) -> LabelledBatch:
        """Inputs and targets of a step, and weights ``[N]`` where there are some."""
        batch = self.batches(step)
        return (*batch[:2], *(weights[0] for weights in batch[2:]))

    def divide(self, share: Share) -> None:
        """Each rank takes some of the samples of every batch.

        Raises:
            SettingError: there are fewer than ranks; batch normalisation.
        """
        check_enough("batch_size", self.expected, share)
        check_parts(self.model.module, share)
        self._share = share

    def part(self, batch: LabelledBatch) -> AbstractContextManager[LabelledBatch]:
        """The samples of this rank."""
        return samples_of_rank(batch, self._share, alone=math.isfinite(self.max_norm))

    def gradient(self, params: Params, batch: LabelledBatch, *, step: int) -> StepGradient:
        """Mean of the clipped gradients of a batch; noise comes after ranks are summed."""
        self.model.train()
        count = len(batch[1])
        grads, loss, clipped = self._clipped(params, batch) if count else _of_nothing(params)
        return StepGradient(
            grads,
            loss[None],
            count,
            divisor=max(count, 1),
            normalizer=self.expected,
            noise=partial(self.noisy, step=step) if self.noise_multiplier else None,
            scalars={} if clipped is None else {"train/clipped_fraction": clipped},
            suspects=lambda: f"batch {step} of the training part",
        )

    def unused_parameters(self) -> list[str]:
        """Those of the loss of the first batch; they get no noise either."""
        self.model.train()
        return unused_parameters(self.loss, self.model.params, self._first_batch())

    def records(
        self, batch: LabelledBatch, gradient: StepGradient, *, step: int
    ) -> Mapping[str, float]:
        """Nothing beyond the scalars of the gradient."""
        return {}

    def state(self) -> dict[str, Any]:
        """How gradients are taken, so that a resumed run goes on in the same way."""
        own = {} if self.weights is None else {"member_weights": self.weights.checksum}
        if self.plan is None:
            return own
        plan = {"chunk_size": self.plan.chunk_size, "device": self.model.device.type}
        return {"plan": plan, **own}

    def state_kinds(self) -> list[Kind]:
        """The plan, where there is one, and the same weights."""
        plan = mapping({"chunk_size": maybe(whole(1)), "device": text})
        return [mapping({}, {"plan": maybe(plan)}), same_weights(self.weights)]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the plan of the run, unless it was made for another kind of device."""
        plan = state.get("plan")
        if plan and plan["device"] == self.model.device.type and self.chunk_size == "auto":
            self.plan = SamplePlan(plan["chunk_size"], "as before the interruption")
            log.info("%s", self.plan)

    def _clipped(
        self, params: Params, batch: LabelledBatch
    ) -> tuple[Mapping[str, Tensor], Tensor, Tensor | None]:
        """Mean of the clipped gradients, mean loss, and the share that was clipped."""
        if math.isinf(self.max_norm):
            if self.method == "loop":
                grads = one_gradient(self.loss, params, batch)
                with torch.no_grad():
                    return grads, self.loss(params, batch), None
            return *self._call(partial(_plain, self.loss), params, batch), None
        found = self.clipped(params, batch)
        loss = found.losses.detach().mean()
        return found.grads, loss, widest(found.norms > self.max_norm).mean()

    def clipped(self, params: Params, batch: LabelledBatch) -> ClippedGradient:
        """The mean of the clipped gradients of a batch, norms and losses."""
        assert self.plan is not None
        how: Any = {"chunk_size": self.plan.chunk_size, "method": self.method}
        how |= {"clipping": self.clipping, "groups": self.groups}
        taken = partial(clipped_gradient, self.loss, max_norm=self.max_norm, **how)
        found: ClippedGradient = self._call(taken, params, batch)
        return found

    def _call(self, function: Callable[..., Any], *trees: Any) -> Any:
        return (self.pure or as_it_is)(function, *trees)

    def noisy(
        self, grads: Mapping[str, Tensor], normalizer: float, *, step: int
    ) -> dict[str, Tensor]:
        """Gradients with noise of standard deviation σ·C/B, the same on every rank.

        B is the ``normalizer`` that their sum was divided by.
        """
        generator = self._noise_of(step)
        size = self.noise_multiplier * self.max_norm / normalizer
        return {
            name: grad + size * torch.randn(grad.shape, generator=generator).to(grad)
            for name, grad in grads.items()
        }

    def _noise_of(self, step: int) -> torch.Generator:
        drawn = AddressedStream(self.seed, "noise", step).with_replacement(2**62, 1)
        return torch.Generator().manual_seed(int(drawn[0]))

    def _first_batch(self) -> LabelledBatch:
        """By which is decided what is decided once."""
        return self.batch(0)

    def _planned(self) -> SamplePlan:
        if self.chunk_size != "auto":
            return SamplePlan(self.chunk_size)
        if self.deterministic or math.isinf(self.max_norm):
            return SamplePlan(None, "nothing measured")
        self.model.train()
        batch = self._first_batch()
        size = clipped_chunk(self.loss, self.model.params, batch, method=self.method)
        whole = size is None or size >= len(batch[1])
        return SamplePlan(None if whole else size, "as many as memory has room for")


def _plain(loss: LossFn, params: Params, batch: LabelledBatch) -> tuple[Params, Tensor]:
    """Gradient and loss of a batch."""
    grads, value = torch.func.grad_and_value(checked_to_reach(loss))(params, batch)
    return grads, value


def _of_nothing(params: Params) -> tuple[dict[str, Tensor], Tensor, None]:
    """Sums over an empty batch."""
    grads = {name: torch.zeros_like(value) for name, value in params.items()}
    return grads, next(iter(params.values())).new_zeros(()), None
