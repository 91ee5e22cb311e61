"""Meta-SGD: a learnt step size for each element of each parameter.

Axes: K inner steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from metalearn.core.checks import check_number
from metalearn.errors import SettingError
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.signatures import checked
from metalearn.trainers.meta.maml import MetaLearner
from metalearn.trainers.meta.settings import MAML, with_learnt_rates

__all__ = ["MetaSGD"]


class MetaSGD(MetaLearner):
    """MAML with inner steps θ_{k+1} = θ_k − α ∘ ∇L(θ_k; support), of which θ_0 and α are learnt.

    α has the shape of θ, so that it learns directions and not only lengths; its elements may become
    negative. They are ``learnt.lr.<parameter>`` among the parameters, each member's own. With rates
    that are not learnt further it is MAML.

    Args:
        module: as for `MetaLearner`.
        maml: as for `MetaLearner`; K = ``inner_steps`` of at least 1, and no implicit method. All
            inner steps share α; ``learn=["lr"]`` and ``lr_per="element_and_step"`` give each its
            own, ``[K, ...]``.
        kind: as for `MetaLearner`.
        rate_range: where elements of α start: drawn uniformly between two numbers, ``(0.005, 0.1)``
            in the paper; None has all of them start at ``maml.inner_lr``.
        seed: of these draws; members add their number.

    Raises:
        SettingError: as `MetaLearner`; a range that is none, settings of ``maml`` that contradict.

    Source: Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning",
    2017. The paper takes one inner step, in training and in tests.
    """

    @checked
    def __init__(
        self,
        module: nn.Module,
        maml: MAML | None = None,
        *,
        kind: Literal["classification", "regression"] = "classification",
        rate_range: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        check_seed(seed)
        if rate_range is not None:
            _check_range(rate_range)
        maml = maml or MAML()
        _check_inner(maml)
        maml = with_learnt_rates(maml, "element", "element_and_step")
        super().__init__(module, maml, kind=kind)
        if rate_range is not None:
            self._draw_rates(*rate_range, seed=seed)

    def _draw_rates(self, low: float, high: float, *, seed: int) -> None:
        """Have the step sizes of each network start somewhere between two numbers."""
        assert self.network.learnt is not None
        members = self.network.count
        for index in range(members or 1):
            draws = AddressedStream(seed + index, "rates", 0)
            for name in self.network.learnt.rates:
                rates = self.params[name] if members is None else self.params[name][index]
                drawn = torch.from_numpy(draws.uniform(rates.numel())).view(rates.shape)
                rates.copy_(low + (high - low) * drawn)


def _check_range(given: Sequence[float]) -> None:
    """Refuse what is no range of step sizes."""
    for index, rate in enumerate(given):
        check_number(f"rate_range[{index}]", rate, above=0)
    if len(given) != 2 or given[0] > given[1]:
        accepted = "two numbers are needed, the smaller one first"
        raise SettingError("rate_range", list(given), accepted)


def _check_inner(maml: MAML) -> None:
    """Refuse settings of the inner loop that leave no step sizes to learn."""
    if maml.of_the_end:
        accepted = "auto, reverse, mixed or first_order is needed where step sizes are learnt"
        raise SettingError("maml.method", maml.method, accepted)
    if not maml.inner_steps:
        accepted = "at least 1 is needed for step sizes to be learnt"
        raise SettingError("maml.inner_steps", 0, accepted)
