"""One kind of private step: how its examples are drawn and how much noise its sum gets.

Axes: N examples of the training data, of which a step takes B, or B on average.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from metalearn.errors import DataError, SettingError, check_whole
from metalearn.privacy.adaptive import AdaptiveGaussian
from metalearn.privacy.banded import BandedGaussian
from metalearn.privacy.events import GaussianEvent, Neighbours
from metalearn.privacy.plain_states import made_of, take_noise
from metalearn.schema import choice, mapping, nothing, number, whole
from metalearn.signatures import known_fields

__all__ = [
    "Mechanism",
    "SampledGaussian",
    "Sampling",
    "SeededNoise",
    "drawn_gaussian",
    "mechanism_of",
]

Sampling = Literal["poisson", "fixed_size", "shuffled", "full_batch"]
"""How the examples of a step are drawn."""


@runtime_checkable
class Mechanism(Protocol):
    """One kind of step, as often as it is taken; frozen, so that equal ones count together."""

    @property
    def neighbours(self) -> Neighbours:
        """The relation under which it is accounted; different ones do not compose."""

    def counted(self, first: int, count: int) -> int:
        """As how many steps a series counts that begins at step ``first`` of a run."""

    def events(self, count: int) -> list[tuple[GaussianEvent, int]]:
        """What so many steps compose of, each with how often."""

    def state(self) -> dict[str, Any]:
        """Itself as plain JSON, of which `mechanism_of` makes it anew."""


@known_fields
@dataclass(frozen=True)
class SampledGaussian:
    """A step of DP-SGD: examples are drawn, gradients clipped to C, summed, and given noise.

    The sum gets σ·C·z, z standard normal; C itself has no part in the account.

    - ``"poisson"``: each of the N examples is in the batch with probability q = B/N, by itself, so
      that batches vary in size and may be empty. Neighbours differ by one example more or less.
    - ``"fixed_size"``: B of the N, without replacement. Neighbours differ in what one example is,
      which moves the sum by up to 2·C: the same σ counts as half of it. Accounted by RDP alone.
    - ``"shuffled"``: epochs of N // B batches in random order. **No amplification by sampling is
      claimed**: a series of steps that begins anywhere in an epoch touches an example at most once
      in each epoch that it meets, and so counts as so many Gaussian mechanisms over all data, parts
      of epochs as whole ones. Neighbours differ by one example that counts as nothing.
    - ``"full_batch"``: all N in every step, B = N: Poisson sampling with q = 1.

    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016; Wang, Balle and
    Kasiviswanathan, "Subsampled Rényi Differential Privacy and Analytical Moments Accountant",
    AISTATS 2019 (fixed size).

    Args:
        sampling: how the examples of a step are drawn.
        examples: N, at least 1.
        batch_size: B, in 1..N.
        noise_multiplier: σ, at least 0; 0 has no privacy.

    Raises:
        SettingError: one of them is out of its range.
    """

    sampling: Sampling
    examples: int
    batch_size: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        known = get_args(Sampling)
        if not isinstance(self.sampling, str) or self.sampling not in known:
            raise SettingError("sampling", self.sampling, f"one of {', '.join(known)} is needed")
        check_whole("examples", self.examples, 1)
        check_whole("batch_size", self.batch_size, 1)
        if self.batch_size > self.examples:
            accepted = f"there are {self.examples} examples, so at most as many are accepted"
            raise SettingError("batch_size", self.batch_size, accepted)
        if self.sampling == "full_batch" and self.batch_size != self.examples:
            accepted = f"a full batch has all {self.examples} examples, so that many are needed"
            raise SettingError("batch_size", self.batch_size, accepted)
        take_noise(self)

    @property
    def rate(self) -> float:
        """The share of the examples that are in a step, q = B/N."""
        return self.batch_size / self.examples

    @property
    def neighbours(self) -> Neighbours:
        """The relation of neighbouring data sets for which an ε holds."""
        if self.sampling == "fixed_size":
            return "replace_one"
        return "zero_out_one" if self.sampling == "shuffled" else "add_or_remove_one"

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every example, but for N mod B of them, was in one batch: N // B."""
        return self.examples // self.batch_size

    def counted(self, first: int, count: int) -> int:
        """As how many steps a series counts: of shuffled batches, whole epochs that it meets.

        Args:
            first: the first step of the series, counted from 0 at the start of the run.
            count: how many steps follow each other, that one among them.
        """
        if self.sampling != "shuffled" or not count:
            return count
        epoch = self.steps_per_epoch
        return ((first + count - 1) // epoch - first // epoch + 1) * epoch

    def events(self, count: int) -> list[tuple[GaussianEvent, int]]:
        """What ``count`` steps compose of."""
        if self.sampling == "fixed_size":
            event = GaussianEvent(self.noise_multiplier / 2, self.rate, without_replacement=True)
            return [(event, count)]
        if self.sampling == "shuffled":
            return [(GaussianEvent(self.noise_multiplier), -(-count // self.steps_per_epoch))]
        return [(GaussianEvent(self.noise_multiplier, self.rate), count)]

    def state(self) -> dict[str, Any]:
        """Itself as plain JSON."""
        return {"kind": "sampled_gaussian", **asdict(self)}

    @classmethod
    def from_state(cls, state: Any) -> SampledGaussian:
        """What `state` gave.

        Raises:
            DataError: it is none, or one that cannot be.
        """
        return made_of(cls, state, _SAMPLED_GAUSSIAN)


@dataclass(frozen=True)
class SeededNoise:
    """A mechanism whose noise came from a seeded generator: as good as without noise.

    Whoever has the seed, which stands in the configuration of a run, can take the noise off again.
    """

    of: Mechanism

    @property
    def neighbours(self) -> Neighbours:
        """Those of the mechanism."""
        return self.of.neighbours

    def counted(self, first: int, count: int) -> int:
        """As the mechanism counts them."""
        return self.of.counted(first, count)

    def events(self, count: int) -> list[tuple[GaussianEvent, int]]:
        """Steps without noise."""
        return [(GaussianEvent(0.0), count)]

    def state(self) -> dict[str, Any]:
        """Itself as plain JSON."""
        return {"kind": "seeded_noise", "of": self.of.state()}

    @classmethod
    def from_state(cls, state: Any) -> SeededNoise:
        """What `state` gave.

        Raises:
            DataError: it is none.
        """
        inner = state.get("of")
        if isinstance(inner, dict) and inner.get("kind") == state.get("kind"):
            raise DataError("this is no mechanism of private steps (its noise is seeded twice)")
        return cls(mechanism_of(inner))


def drawn_gaussian(
    sampling: Sampling, examples: int, batch_size: int, noise_multiplier: float, *, bands: int = 1
) -> SampledGaussian | BandedGaussian:
    """The mechanism of steps whose noise is independent, or correlated over several bands.

    Raises:
        SettingError: a value out of range; correlated noise with other than Poisson sampling.
    """
    check_whole("bands", bands, 1)
    if bands == 1:
        return SampledGaussian(sampling, examples, batch_size, noise_multiplier)
    if sampling != "poisson":
        accepted = "poisson is needed where bands is above 1: it alone is accounted for"
        raise SettingError("sampling", sampling, accepted)
    return BandedGaussian(examples, batch_size, bands, noise_multiplier)


def mechanism_of(state: Any) -> Mechanism:
    """The mechanism of which ``state`` is the state.

    Raises:
        DataError: it is that of no mechanism that is known here.
    """
    kind = state.get("kind") if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        known = f"kind is {kind!r}, known are {', '.join(_KINDS)}"
        raise DataError(f"this is no mechanism of private steps ({known})")
    return _KINDS[kind].from_state(state)


_Kind = type[SampledGaussian] | type[AdaptiveGaussian] | type[BandedGaussian] | type[SeededNoise]
_KINDS: dict[str, _Kind] = {
    "sampled_gaussian": SampledGaussian,
    "banded_gaussian": BandedGaussian,
    "adaptive_gaussian": AdaptiveGaussian,
    "seeded_noise": SeededNoise,
}
_SAMPLED_GAUSSIAN = mapping(
    {
        "kind": choice("sampled_gaussian"),
        "sampling": choice(*get_args(Sampling)),
        "examples": whole(1),
        "batch_size": whole(1),
        "noise_multiplier": number(0),
    },
    others=nothing,
)
