"""The order of batches, member by member: a function of (seed, step) that keeps no state.

Axes: M members, N samples of the training part, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metalearn.core.checks import as_device
from metalearn.errors import SettingError, check_whole
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.reprs import counted, one_line
from metalearn.signatures import checked

__all__ = ["MemberBatches"]


class MemberBatches:
    """Batches of M members, each in its own order and, where wanted, of its own resample.

    An epoch of a member visits each of its N samples once, in an order that belongs to
    (seed, epoch), and has ``N // batch_size`` batches; what does not fill a last batch is left
    out, other samples every epoch. Step s is batch ``s mod (N // batch_size)`` of epoch
    ``s // (N // batch_size)``. Since nothing but its seed tells a member's batches, row k is what
    a run of that member alone sees, and a run goes on where it was interrupted.

    With ``bootstrap`` the N samples of a member are drawn once from its seed with replacement
    (about 63.2 % of the samples are among them) and stay the same over the run
    (Breiman, "Bagging predictors", Machine Learning 24, 1996).

    Args:
        samples: number of samples N, for indices 0..N-1, or the sample indices themselves, int64
            ``[N]``: ``data.splits["train"]``.
        batch_size: B, at most N.
        seeds: one a member.
        bootstrap: each member has its own resample.
        shuffle: False keeps the samples in the given order, the same every epoch.
        device: where indices are handed out.

    Raises:
        SettingError: a setting that cannot work.
    """

    @checked
    def __init__(
        self,
        samples: int | Tensor,
        *,
        batch_size: int,
        seeds: Sequence[int],
        bootstrap: bool = False,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self._samples = _checked_samples(samples)
        count = len(self._samples)
        check_whole("batch_size", batch_size, 1)
        if batch_size > count:
            accepted = f"the training part has {count} samples, so at most as many are accepted"
            raise SettingError("batch_size", batch_size, accepted)
        if not len(seeds):
            raise SettingError("seeds", seeds, "at least one seed is needed, one a member")
        for seed in seeds:
            check_seed(seed)
        self.batch_size, self.bootstrap, self.shuffle = batch_size, bootstrap, shuffle
        self.seeds = tuple(seeds)
        self.batches_per_epoch = count // batch_size
        self._distinct = tuple(dict.fromkeys(self.seeds))
        self._row = torch.tensor([self._distinct.index(seed) for seed in self.seeds])
        self._device = as_device(device)
        self._resamples = [self._resample(seed) for seed in self._distinct]
        self._epoch: tuple[int, Tensor] | None = None

    def __repr__(self) -> str:
        members = counted(len(self.seeds), "member")
        samples = counted(len(self._samples), "sample")
        return one_line(self, members, samples, f"batches of {self.batch_size}")

    @property
    def shared(self) -> bool:
        """Whether all members see the same batches, so that `indices` has no member axis."""
        return len(self._distinct) == 1 or not (self.shuffle or self.bootstrap)

    def indices(self, step: int) -> Tensor:
        """Sample indices of a step, int64: ``[B]`` where all members share them, else ``[M, B]``.

        The order of an epoch is kept until another epoch is asked for: the first step of an epoch
        costs M sorts of N numbers, the others a copy of B.

        Args:
            step: of the run, 0 or above.

        Raises:
            SettingError: no such step.
        """
        check_whole("step", step, 0)
        epoch, batch = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        first = batch * self.batch_size
        return self._epoch[1][..., first : first + self.batch_size].clone()

    def counts(self, member: int) -> Tensor:
        """How often each of the N samples is in an epoch of a member, int64 ``[N]``.

        1 without ``bootstrap``. What does not fill a last batch is counted too.
        """
        if not self.bootstrap:
            return torch.ones(len(self._samples), dtype=torch.int64, device=self._device)
        drawn = self._resamples[int(self._row[member])]
        every = np.bincount(drawn, minlength=int(self._samples.max()) + 1)
        return torch.from_numpy(every[self._samples]).to(self._device)

    def _order(self, epoch: int) -> Tensor:
        """Sample indices of an epoch, ``[N]`` or ``[M, N]``."""
        rows = self._resamples
        if self.shuffle:
            rows = [
                row[AddressedStream(seed, "order", epoch).permutation(len(row))]
                for seed, row in zip(self._distinct, rows)
            ]
        if self.shared:
            return torch.from_numpy(rows[0]).to(self._device)
        return torch.from_numpy(np.stack(rows))[self._row].to(self._device)

    def _resample(self, seed: int) -> np.ndarray:
        """The N samples of a member, all of them or drawn with replacement."""
        if not self.bootstrap:
            return self._samples
        count = len(self._samples)
        return self._samples[AddressedStream(seed, "bootstrap", 0).with_replacement(count, count)]


def _checked_samples(samples: int | Tensor) -> np.ndarray:
    if not isinstance(samples, Tensor):
        check_whole("samples", samples, 1)
        return np.arange(samples)
    if samples.dtype != torch.int64 or samples.ndim != 1 or not len(samples):
        raise SettingError(
            "samples",
            f"{samples.dtype} {list(samples.shape)}",
            "a number of samples, or int64 sample indices [N], at least one, is needed",
        )
    return samples.cpu().numpy().copy()
