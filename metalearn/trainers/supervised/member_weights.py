"""Weights of the training examples in each member's loss: given, read, or drawn as subsets.

Axes: M members, N examples of the training part, B samples of a batch.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from metalearn.core.checks import check_number
from metalearn.core.memory import check_memory
from metalearn.core.tree import check_tensors
from metalearn.data.regression import SupervisedData
from metalearn.errors import DataError, SettingError, check_whole
from metalearn.files import UNREADABLE_ARRAYS, read_regular
from metalearn.random_streams import AddressedStream, check_seed
from metalearn.schema import Kind, Misfit, mapping
from metalearn.signatures import check_settings, checked

__all__ = [
    "ExampleWeights",
    "MemberWeights",
    "example_weights",
    "made_weights",
    "random_subsets",
    "same_weights",
]

MemberWeights: TypeAlias = Tensor | Mapping[str, Any] | str | Path | None
"""``[M, N]``; a file ``.npy`` or ``.csv`` of M rows; or ``{leave_out: 0.05, seed: 0}``, settings of
`random_subsets`."""

_SETTING = "member_weights"
_LARGEST = 2**31  # bytes of a file


class ExampleWeights:
    """The weights of M members, looked up by the indices of samples.

    Args:
        values: ``[M, N]``, as `made_weights` gives them.
        data: whose training part has N examples, in the order of ``data.splits["train"]``.
        device: where weights of a batch are put.

    Attributes:
        checksum: SHA-256 of the weights, whatever their type and device.
    """

    def __init__(self, values: Tensor, data: SupervisedData, device: torch.device) -> None:
        samples = data.splits["train"]
        columns = torch.zeros(len(data.inputs), dtype=torch.int64)
        columns[samples] = torch.arange(len(samples))
        self._values, self._columns = values.to(device), columns.to(device)
        self.checksum = _checksum(values)

    def of(self, indices: Tensor) -> Tensor:
        """Weights ``[M, B]`` of samples ``[B]`` that members share, or ``[M, B]``."""
        columns = self._columns[indices.to(self._columns.device)]
        if columns.dim() == 1:
            return self._values[:, columns]
        return self._values.gather(1, columns)


@checked
def random_subsets(
    members: int, examples: int, *, leave_out: float = 0.05, seed: int = 0
) -> Tensor:
    """Weights of M subsets drawn by chance: 0 for round(leave_out·N) of the N examples, else 1.

    Row m belongs to (seed, m) alone, so that more subsets begin with the same ones.

    Args:
        members: M.
        examples: N.
        leave_out: share of the examples that each subset lacks, in (0, 1).
        seed: of the draws.

    Returns:
        ``[M, N]``, float32.

    Raises:
        SettingError: a share that leaves out none of the examples, or all.
    """
    check_whole("members", members, 1)
    check_whole("examples", examples, 2)
    check_number("leave_out", leave_out, above=0, below=1)
    check_seed(seed)
    check_memory("members", members, 4 * members * examples)
    count = round(float(leave_out) * examples)
    if not 0 < count < examples:
        accepted = f"a share is needed that leaves out 1 to {examples - 1} of {examples} examples"
        raise SettingError("leave_out", leave_out, accepted)
    weights = torch.ones(members, examples)
    for member in range(members):
        order = AddressedStream(seed, "subsets", member).permutation(examples)
        weights[member, torch.from_numpy(order[:count])] = 0
    return weights


def example_weights(
    setting: MemberWeights, members: int, data: SupervisedData, device: torch.device
) -> ExampleWeights | None:
    """The weights of a setting on the training part of data; see `made_weights`."""
    values = made_weights(setting, members, data.size("train"))
    return None if values is None else ExampleWeights(values, data, device)


def made_weights(
    setting: MemberWeights, members: int, examples: int, *, name: str = _SETTING
) -> Tensor | None:
    """Weights ``[M, N]`` of a setting, checked; None where none are given.

    Args:
        setting: see `MemberWeights`; ``[N]`` where there is one member.
        members: M.
        examples: N.
        name: of the setting, for messages.

    Raises:
        SettingError: another shape, no such setting, weights that are negative or not finite.
        DataError: a file that cannot be read as numbers.
    """
    if setting is None:
        return None
    if isinstance(setting, Mapping):
        return _drawn(setting, members, examples)
    if isinstance(setting, str | Path):
        values, shown = _read(Path(setting)), str(setting)
    else:
        check_tensors(setting, name)
        values, shown = setting.detach(), str(list(setting.shape))
    if values.is_complex():
        raise SettingError(name, str(values.dtype), "real numbers are needed")
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    if members == 1 and values.dim() == 1:
        values = values[None]
    if list(values.shape) != [members, examples]:
        accepted = (
            f"[{members}, {examples}] is needed, a row for each member and a column for each "
            f"example of the training part, not {list(values.shape)}"
        )
        raise SettingError(name, shown, accepted)
    lost = (~(values.isfinite() & (values >= 0))).nonzero()
    if len(lost):
        row, column = lost[0].tolist()
        accepted = f"finite numbers of at least 0 are needed; [{row}, {column}] is another"
        raise SettingError(name, float(values[row, column]), accepted)
    return values.clone()


def same_weights(weights: ExampleWeights | None) -> Kind:
    """A checkpoint's entry: the checksum of the weights that the run has, or none."""

    def same(value: Any, where: str) -> None:
        if weights is None or value != weights.checksum:
            own = "none" if weights is None else f"{weights.checksum[:8]}…"
            raise Misfit(where, value, f"the weights the run began with (checksum {own})")

    return mapping({}, {_SETTING: same}) if weights is None else mapping({_SETTING: same})


def _drawn(setting: Mapping[str, Any], members: int, examples: int) -> Tensor:
    given = dict(setting)
    check_settings(random_subsets, given, f"{_SETTING}.", without=("members", "examples"))
    if "leave_out" not in given:
        raise SettingError(_SETTING, given, "leave_out is needed, the share that is left out")
    try:
        return random_subsets(members, examples, **given)
    except SettingError as error:
        raise SettingError(f"{_SETTING}.{error.setting}", error.value, error.accepted) from error


def _read(path: Path) -> Tensor:
    """Numbers of a file; of ``.npy`` nothing is unpickled."""
    if path.suffix not in (".npy", ".csv"):
        accepted = "a file .npy or .csv, or {leave_out: 0.05}, is needed"
        raise SettingError(_SETTING, str(path), accepted)
    try:
        content = read_regular(path, _LARGEST)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: these weights cannot be read ({reason})") from error
    if not content.strip():
        raise DataError(f"{path}: this is no table of numbers (it is empty)")
    try:
        if path.suffix == ".npy":
            values = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            values = np.loadtxt(io.StringIO(content.decode()), delimiter=",", ndmin=2)
        return torch.from_numpy(np.ascontiguousarray(values))
    except UNREADABLE_ARRAYS as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: this is no table of numbers ({reason})") from error


def _checksum(values: Tensor) -> str:
    digest = hashlib.sha256(f"{list(values.shape)}".encode())
    for row in values:
        digest.update(row.cpu().double().contiguous().numpy().tobytes())
    return digest.hexdigest()
