"""Which examples are in the batch of a step.

Axes: N examples of the training data, B or about B of them in a batch.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.errors import SettingError, check_whole
from metalearn.privacy.adaptive import AdaptiveGaussian
from metalearn.privacy.banded import BandedGaussian
from metalearn.privacy.mechanism import SampledGaussian
from metalearn.random_streams import AddressedStream, SecureStream, Stream, check_seed
from metalearn.signatures import checked

__all__ = [
    "BatchSampling",
    "FixedSizeSampling",
    "PartitionedSampling",
    "PoissonSampling",
    "ShuffledSampling",
    "sampling_of",
]

Examples = int | Tensor


class BatchSampling(Protocol):
    """Draws batches."""

    def draw(self, step: int) -> Tensor:
        """Indices of the examples in the batch of a step, int64, none of them twice."""


class PoissonSampling:
    """Each example is in a batch with probability q, by itself: batches vary in size.

    A batch may be empty, and then its step is of noise alone. Gaps between examples are drawn, q·N
    of them instead of N decisions; the probability is exact to 2^-53.

    Args:
        examples: N, or their indices, int64 ``[N]``.
        rate: q in (0, 1].
        seed: of the draws, one batch for each step, the same whenever it is asked for. None draws
            from a cryptographically secure generator, another batch at each call; the account
            holds only where nobody knows who was drawn, so that is what private training takes.

    Raises:
        SettingError: a value out of range.
    """

    @checked
    def __init__(self, examples: Examples, rate: float, *, seed: int | None = None) -> None:
        self._examples = _indices(examples)
        _check_rate(rate)
        _check_seed(seed)
        self.rate, self.seed = float(rate), seed

    def draw(self, step: int) -> Tensor:
        """``[n]``, in the order of the examples; n may be 0.

        Raises:
            SettingError: no such step.
        """
        check_whole("step", step, 0, _STEPS)
        return self._examples[_taken(_stream(self.seed, step), len(self._examples), self.rate)]


class PartitionedSampling:
    """Each example belongs to one of b parts; of part t mod b, step t takes each with q, by itself.

    An example is in a part by chance and whatever the others are in, so that no part is told by
    who is there; parts differ in size, and the sizes of batches vary a little more than those of
    `PoissonSampling`, which this is for b = 1.

    Args:
        examples: N, or their indices, int64 ``[N]``.
        rate: q in (0, 1] of the examples of a part, b times the share that is in a batch.
        parts: b, at least 1.
        seed: of parts and draws, as for `PoissonSampling`; None gives another object other parts.

    Raises:
        SettingError: a value out of range.
    """

    @checked
    def __init__(
        self, examples: Examples, rate: float, parts: int, *, seed: int | None = None
    ) -> None:
        indices = _indices(examples)
        _check_rate(rate)
        check_whole("parts", parts, 1)
        _check_seed(seed)
        one = SecureStream() if seed is None else AddressedStream(seed, "division", _PARTS)
        place = torch.from_numpy(one.with_replacement(parts, len(indices)))
        order = place.argsort(stable=True)
        sizes = place.bincount(minlength=parts).tolist()
        self._parts = torch.split(indices[order], sizes)
        self.rate, self.seed = float(rate), seed

    def draw(self, step: int) -> Tensor:
        """``[n]``, in the order of the examples; n may be 0.

        Raises:
            SettingError: no such step.
        """
        check_whole("step", step, 0, _STEPS)
        part = self._parts[step % len(self._parts)]
        return part[_taken(_stream(self.seed, step), len(part), self.rate)]


class FixedSizeSampling:
    """Batches of B different examples, drawn anew for each step.

    Args:
        examples: N, or their indices, int64 ``[N]``.
        batch_size: B, in 1..N.
        seed: as for `PoissonSampling`.

    Raises:
        SettingError: a value out of range.
    """

    @checked
    def __init__(self, examples: Examples, batch_size: int, *, seed: int | None = None) -> None:
        self._examples = _indices(examples)
        _check_size(batch_size, len(self._examples))
        _check_seed(seed)
        self.batch_size, self.seed = batch_size, seed

    def draw(self, step: int) -> Tensor:
        """``[B]``, in random order.

        Raises:
            SettingError: no such step.
        """
        check_whole("step", step, 0, _STEPS)
        stream = _stream(self.seed, step)
        drawn = stream.without_replacement(len(self._examples), self.batch_size)
        return self._examples[torch.tensor(drawn)]


class ShuffledSampling:
    """Epochs of N // B batches of B, in another random order each; what is left over waits.

    Args:
        examples: N, or their indices, int64 ``[N]``.
        batch_size: B, in 1..N.
        seed: of the orders. None draws one, so that another object has other orders; the account
            of shuffled batches takes no advantage of their being unknown.

    Raises:
        SettingError: a value out of range.
    """

    @checked
    def __init__(self, examples: Examples, batch_size: int, *, seed: int | None = None) -> None:
        self._examples = _indices(examples)
        _check_size(batch_size, len(self._examples))
        _check_seed(seed)
        self.batch_size = batch_size
        self.seed = int(SecureStream().words(1)[0]) if seed is None else seed
        self._epoch: tuple[int, Tensor] | None = None

    def draw(self, step: int) -> Tensor:
        """``[B]``; the order of an epoch is kept until another epoch is asked for.

        Raises:
            SettingError: no such step.
        """
        check_whole("step", step, 0, _STEPS)
        epoch, batch = divmod(step, len(self._examples) // self.batch_size)
        if self._epoch is None or self._epoch[0] != epoch:
            order = AddressedStream(self.seed, "order", epoch).permutation(len(self._examples))
            self._epoch = epoch, self._examples[torch.from_numpy(order)]
        first = batch * self.batch_size
        return self._epoch[1][first : first + self.batch_size].clone()


@checked
def sampling_of(
    mechanism: SampledGaussian | AdaptiveGaussian | BandedGaussian,
    examples: Examples,
    *,
    seed: int | None = None,
) -> BatchSampling:
    """What draws the batches that a mechanism accounts for.

    Args:
        mechanism: of the steps.
        examples: N, or their indices, int64 ``[N]``; as many as the mechanism has.
        seed: of the draws; None draws from a cryptographically secure generator.

    Raises:
        SettingError: another number of examples, or no seed.
    """
    count = len(_indices(examples))
    if count != mechanism.examples:
        accepted = f"the mechanism accounts for {mechanism.examples}, so that many are needed"
        raise SettingError("examples", count, accepted)
    if isinstance(mechanism, BandedGaussian):
        return PartitionedSampling(examples, mechanism.rate, mechanism.bands, seed=seed)
    if isinstance(mechanism, AdaptiveGaussian):
        return PoissonSampling(examples, mechanism.rate, seed=seed)
    if mechanism.sampling == "fixed_size":
        return FixedSizeSampling(examples, mechanism.batch_size, seed=seed)
    if mechanism.sampling == "shuffled":
        return ShuffledSampling(examples, mechanism.batch_size, seed=seed)
    return PoissonSampling(examples, mechanism.rate, seed=seed)


_STEPS = 2**58 - 1  # that a stream has an address for
_PARTS = 2**57  # the address of the parts of a partition


def _stream(seed: int | None, step: int) -> Stream:
    return SecureStream() if seed is None else AddressedStream(seed, "order", step)


def _taken(stream: Stream, population: int, rate: float) -> Tensor:
    """Which of so many are taken, each with probability ``rate``, in order.

    The number that is passed over before the next one is geometric: log(u)/log(1−q), cut off.
    """
    if rate == 1:
        return torch.arange(population)
    expected = rate * population
    many = int(expected + 6 * math.sqrt(expected)) + 8
    place, found = -1, []
    while place < population:
        with np.errstate(over="ignore"):
            passed = np.log1p(-stream.uniform(many)) / math.log1p(-rate)
        gaps = np.minimum(passed, population).astype(np.int64)
        places: NDArray[np.int64] = place + np.cumsum(gaps + 1)
        found.append(places[places < population])
        place = int(places[-1])
    return torch.from_numpy(np.concatenate(found))


def _indices(examples: Examples) -> Tensor:
    if not isinstance(examples, Tensor):
        check_whole("examples", examples, 1, 2**31)
        return torch.arange(examples)
    if examples.dtype != torch.int64 or examples.ndim != 1 or not len(examples) or examples.is_meta:
        raise SettingError(
            "examples",
            f"{examples.dtype} {list(examples.shape)}",
            "a number of examples, or int64 indices [N], at least one, is needed",
        )
    return examples.cpu().clone()


def _check_size(batch_size: int, examples: int) -> None:
    check_whole("batch_size", batch_size, 1)
    if batch_size > examples:
        accepted = f"there are {examples} examples, so at most as many are accepted"
        raise SettingError("batch_size", batch_size, accepted)


def _check_rate(rate: float) -> None:
    check_number("rate", rate, above=0, accepted="a number in (0, 1] is needed")
    if rate > 1:
        raise SettingError("rate", float(rate), "a number in (0, 1] is needed")


def _check_seed(seed: int | None) -> None:
    if seed is not None:
        check_seed(seed)
