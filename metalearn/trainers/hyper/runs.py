"""The runs that are shaped: where each starts, which batches it sees, what it ends as.

Axes: K steps of a run, N examples of the training part, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalearn.core.hyper.run import run_of
from metalearn.core.meta.adapted_task import walk
from metalearn.core.tree import check_like
from metalearn.data import Augmentation, MemberBatches
from metalearn.data.regression import SupervisedData
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream
from metalearn.ranks import Ranks
from metalearn.stretches import stretch
from metalearn.trainers.hyper.carried import Carried
from metalearn.trainers.hyper.kinds import HyperModule, RunSetup, RunValues
from metalearn.trainers.hyper.run_settings import RunSettings
from metalearn.trainers.hyper.shared_samples import shared_inner_loss
from metalearn.trainers.loop.stop_signal import StopSignal
from metalearn.trainers.supervised.batches import TrainingBatches
from metalearn.trainers.supervised.losses import SupervisedLoss
from metalearn.trainers.supervised.network_run import step_batches
from metalearn.trainers.supervised.run_network import RunNetwork
from metalearn.types import Params

__all__ = ["Factory", "InnerRuns", "StartOfRun"]

Factory = Callable[[int], nn.Module]
"""Makes a network like the model, with weights of a seed."""

_SEEDS = 2**31


class StartOfRun(NamedTuple):
    """What a run begins with."""

    params: Params
    batches: Callable[[int], Any]
    state: Any = None
    """Of the optimiser, of a run that goes on."""


class InnerRuns:
    """Runs of one network on the training part.

    Args:
        model: that a run starts from, where runs are computed; left as it is.
        factory: makes further ones; None where all runs start alike.
        data: with the training part.
        loss: of samples.
        settings: of a run.
        seed: of orders of batches, and of networks.
        device: where runs are computed.
        stop: ends a whole run that a signal breaks off.
        ranks: that divide the examples of every step.

    Raises:
        SettingError: a start that there is no network for, a batch larger than the training part.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: Factory | None,
        data: SupervisedData,
        loss: SupervisedLoss,
        *,
        settings: RunSettings,
        seed: int,
        device: torch.device,
        stop: StopSignal,
        ranks: Ranks,
    ) -> None:
        self.module, self.network = model, RunNetwork(model)
        self.data, self.loss, self.settings = data, loss, settings
        self.seed, self.device, self.stop = seed, device, stop
        self.ranks = ranks
        self._factory = factory
        self.like = next(iter(self.network.params.values()))
        if settings.start == "fresh" and factory is None:
            accepted = "a factory of networks is needed for it, factory=..."
            raise SettingError("inner.start", settings.start, accepted)
        if settings.batch_size > data.size("train"):
            accepted = f"the training part has {data.size('train')} examples, so at most as many"
            raise SettingError("inner.batch_size", settings.batch_size, f"{accepted} are accepted")
        if factory is not None:
            self._params_of(seed)

    def setup(self) -> RunSetup:
        """The ordinary run, for what is to shape it."""
        own = self.settings
        rates = own.rates(own.steps, self.like)
        return RunSetup(
            self.data, self.network.params, rates, own.optimizer, own.momentum, self.loss, self.seed
        )

    def of_step(self, step: int, hyper: HyperModule) -> StartOfRun:
        """The run of an outer step, or of each of the batches that a step is accumulated over.

        Args:
            step: number of the step, or of the batch.
            hyper: what shapes it; warm runs start at what it carries.
        """
        count = self.settings.steps
        if self.settings.start == "fresh":
            drawn = AddressedStream(self.seed, "runs", step).with_replacement(_SEEDS, 1)
            seed = int(drawn[0])
            return StartOfRun(self._params_of(seed), self._batches(hyper, seed))
        batches = self._batches(hyper, self.seed)
        if self.settings.start == "fixed":
            return StartOfRun(self.network.params, batches)
        carried = hyper.carried
        assert isinstance(carried, Carried)
        params, state = carried.stands()
        return StartOfRun(params, lambda k: batches(step * count + k), state)

    def carried(self, values: RunValues) -> Carried:
        """What the first of warm runs starts from."""
        made = self.settings.made_optimizer(values.in_optimizer, self.settings.steps, self.like)
        return Carried(self.network.params, made)

    def whole(self, hyper: HyperModule, values: RunValues, index: int) -> Params:
        """Parameters at the end of the index-th whole run.

        Run 0 starts at the model, the others at networks of the factory, where there is one; each
        has an order of batches of its own.
        """
        params, steps = self.network.params, self.settings.scored_steps
        if index and self._factory is not None:
            params = self._params_of(self.seed + index)

        def unused(params: Params, in_loss: Any, batch: Any) -> Tensor:
            return torch.zeros_like(self.like).sum()

        run = run_of(
            self.inner_loss(hyper), unused, params, values.in_loss,
            self._batches(hyper, self.seed + index), None,
            optimizer=self.settings.made_optimizer(values.in_optimizer, steps, self.like),
            steps=steps, frozen=None, state=None,
        )  # fmt: skip
        end = run.start
        with stretch(f"whole run {index + 1}", run.steps, "steps") as tell:
            for point in walk(run.loop, run.start, run.batches, run.steps):
                self.stop.agree()
                self.stop.check()
                end = point.values
                tell(1)
        found: Params = run.apart([value.detach() for value in end])[0]
        return found

    def inner_loss(self, hyper: HyperModule) -> Callable[[Params, Any, Any], Tensor]:
        """What a step of a run descends."""

        def loss(params: Params, in_loss: Any, batch: Any) -> Tensor:
            return shared_inner_loss(hyper, self.network, params, in_loss, batch, self.ranks)

        return loss

    def placed(self, inputs: Tensor) -> Tensor:
        """Inputs in the type of the network, but for numbers of tokens, and where it is."""
        return inputs.to(self.like if inputs.is_floating_point() else self.like.device)

    def _batches(self, hyper: HyperModule, seed: int) -> Callable[[int], Any]:
        """By step; where a run sees no examples, the number of the step alone."""
        nothing = torch.empty(0, device=self.device)
        if not hyper.sees_examples:
            return lambda k: (nothing, nothing, nothing, torch.tensor(k, device=self.device))
        size = self.settings.batch_size
        order = MemberBatches(self.data.splits["train"], batch_size=size, seeds=[seed])
        rows = TrainingBatches(self.data, order, Augmentation(), [seed], self.device)
        of_step = step_batches(rows, 0)

        def batch(step: int) -> Any:
            x, *rest = of_step(step)
            return (self.placed(x), *rest)

        return batch

    def _params_of(self, seed: int) -> Params:
        """Of the factory's network.

        Raises:
            SettingError: another network than the model.
        """
        assert self._factory is not None
        made = self._factory(seed)
        if not isinstance(made, nn.Module):
            raise SettingError("factory", type(made).__name__, "what makes a Module is needed")
        params = {
            n: p.detach().to(self.like) for n, p in made.named_parameters() if p.requires_grad
        }
        if set(params) != set(self.network.params):
            accepted = "what makes networks with the parameters of the model is needed"
            raise SettingError("factory", sorted(params), accepted)
        check_like(params, self.network.params, "factory")
        return {name: params[name] for name in self.network.params}
