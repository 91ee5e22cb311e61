"""Steps whose noise is correlated over several of them, as they are accounted for.

Axes: N examples of the training data, of which a step takes B on average; b bands.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from metalearn.errors import SettingError, check_whole
from metalearn.privacy.events import GaussianEvent, Neighbours
from metalearn.privacy.plain_states import made_of, take_noise
from metalearn.schema import choice, mapping, nothing, number, whole
from metalearn.signatures import known_fields

__all__ = ["BandedGaussian"]


@known_fields
@dataclass(frozen=True)
class BandedGaussian:
    """A step of DP-SGD with banded, matrix-factorised noise, on examples that take turns.

    The sums of a series of steps get σ·C·S⁻¹z for z of independent standard normal rows and S lower
    triangular with b bands, whose columns have a norm of at most 1, see `CorrelatedNoise`. Each
    example belongs to one of b parts, into which it is put by chance and by itself; step t draws
    from part t mod b alone, each example with the probability q = b·B/N, see `PartitionedSampling`.
    An example's possible steps are b apart, so that the columns of S that it meets have no row in
    common: a series of n steps is ⌈n/b⌉ Gaussian mechanisms with the noise σ, each sampled with q.
    Neighbours differ by one example more or less.

    A series ends where earlier noise is forgotten, as when a run is interrupted; the next one is
    another mechanism, and the two compose. One band is DP-SGD with Poisson sampling.

    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A Unified Approach to Private
    Training", NeurIPS 2023.

    Args:
        examples: N, at least 1.
        batch_size: B, at least 1, and at most N/b.
        bands: b, at least 1.
        noise_multiplier: σ, at least 0; 0 has no privacy.

    Raises:
        SettingError: one of them is out of its range.
    """

    examples: int
    batch_size: int
    bands: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        check_whole("examples", self.examples, 1)
        check_whole("batch_size", self.batch_size, 1)
        check_whole("bands", self.bands, 1)
        if self.bands * self.batch_size > self.examples:
            accepted = (
                f"of {self.examples} examples, {self.bands} parts have room for batches of at most "
                f"{self.examples // self.bands}"
            )
            raise SettingError("batch_size", self.batch_size, accepted)
        take_noise(self)

    @property
    def rate(self) -> float:
        """The share of a part's examples that are in its step, q = b·B/N."""
        return self.bands * self.batch_size / self.examples

    @property
    def neighbours(self) -> Neighbours:
        """The relation of neighbouring data sets for which an ε holds."""
        return "add_or_remove_one"

    def counted(self, first: int, count: int) -> int:
        """As how many steps a series counts: b for each turn that an example may have in it.

        Wherever it begins, no part has more turns among n steps in a row than ⌈n/b⌉.

        Args:
            first: the first step of the series.
            count: how many steps follow each other, that one among them.
        """
        return -(-count // self.bands) * self.bands

    def events(self, count: int) -> list[tuple[GaussianEvent, int]]:
        """What ``count`` steps compose of."""
        return [(GaussianEvent(self.noise_multiplier, self.rate), -(-count // self.bands))]

    def state(self) -> dict[str, Any]:
        """Itself as plain JSON."""
        return {"kind": "banded_gaussian", "sampling": "poisson", **asdict(self)}

    @classmethod
    def from_state(cls, state: Any) -> BandedGaussian:
        """What `state` gave.

        Raises:
            DataError: it is none, or one that cannot be.
        """
        return made_of(cls, state, _STATE)


_STATE = mapping(
    {
        "kind": choice("banded_gaussian"),
        "sampling": choice("poisson"),
        "examples": whole(1),
        "batch_size": whole(1),
        "bands": whole(1),
        "noise_multiplier": number(0),
    },
    others=nothing,
)
