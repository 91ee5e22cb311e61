"""Steps whose batch size was chosen by what earlier steps released, as they are accounted for.

Axes: N examples of the training data, of which a step takes B on average.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from metalearn.errors import check_whole
from metalearn.privacy.events import GaussianEvent, Neighbours
from metalearn.privacy.plain_states import made_of, take_noise
from metalearn.schema import choice, mapping, nothing, number, whole
from metalearn.signatures import known_fields

__all__ = ["AdaptiveGaussian"]


@known_fields
@dataclass(frozen=True)
class AdaptiveGaussian:
    """A step of DP-SGD with Poisson sampling whose B, at most M, was chosen by earlier outputs.

    How many steps had which B is itself an output, so that a bound that holds for fixed numbers of
    steps, as the least ε over Rényi orders or a privacy loss distribution, must not be taken of
    the numbers that came about. Whatever was chosen, every step is dominated by one of M examples:
    so it composes here, with any other steps and by any accountant. What was really drawn is
    counted by a `RenyiFilter` alone, at an order that was fixed before the first step.

    Args:
        examples: N, at least 1.
        batch_size: B, in 1..M.
        most: M, the largest B that could have been chosen, at most N.
        noise_multiplier: σ, at least 0; 0 has no privacy.

    Raises:
        SettingError: one of them is out of its range.
    """

    examples: int
    batch_size: int
    most: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        check_whole("examples", self.examples, 1)
        check_whole("most", self.most, 1, self.examples)
        check_whole("batch_size", self.batch_size, 1, self.most)
        take_noise(self)

    @property
    def rate(self) -> float:
        """The share of the examples that are in a step, q = B/N."""
        return self.batch_size / self.examples

    @property
    def neighbours(self) -> Neighbours:
        """The relation of neighbouring data sets for which an ε holds."""
        return "add_or_remove_one"

    def counted(self, first: int, count: int) -> int:
        """As how many steps a series counts: all of them."""
        return count

    def events(self, count: int) -> list[tuple[GaussianEvent, int]]:
        """What ``count`` steps compose of, whatever chose them: as many of M examples."""
        return [(GaussianEvent(self.noise_multiplier, self.most / self.examples), count)]

    def drawn_events(self, count: int) -> list[tuple[GaussianEvent, int]]:
        """What was drawn, of B examples each; for a filter at one order."""
        return [(GaussianEvent(self.noise_multiplier, self.rate), count)]

    def state(self) -> dict[str, Any]:
        """Itself as plain JSON."""
        return {"kind": "adaptive_gaussian", "sampling": "poisson", **asdict(self)}

    @classmethod
    def from_state(cls, state: Any) -> AdaptiveGaussian:
        """What `state` gave.

        Raises:
            DataError: it is none, or one that cannot be.
        """
        return made_of(cls, state, _STATE)


_STATE = mapping(
    {
        "kind": choice("adaptive_gaussian"),
        "sampling": choice("poisson"),
        "examples": whole(1),
        "batch_size": whole(1),
        "most": whole(1),
        "noise_multiplier": number(0),
    },
    others=nothing,
)
