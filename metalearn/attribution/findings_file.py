"""Findings in one file: arrays under a checksum, and a header in JSON; nothing of it is unpickled.

Axes: R targets, N training examples, M retrained subsets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.attribution.datamodels import DatamodelingScore, brittleness_of
from metalearn.attribution.exact import RunCurvature
from metalearn.attribution.findings import Findings
from metalearn.attribution.found_samples import TargetSamples, TrainingExamples
from metalearn.attribution.leaving_out import LeaveKOut
from metalearn.attribution.subset_outcomes import SubsetOutcomes
from metalearn.data.packed import Pack, load_pack, save_pack
from metalearn.errors import DataError, SettingError
from metalearn.schema import anything, list_of, map_of, mapping, maybe, number, text, whole
from metalearn.signatures import checked
from metalearn.tracking.provenance import plain

__all__ = ["load_findings", "save_findings"]

_VERSION = 1  # raise it when what is kept is kept in another way
_FIELDS: dict[str, tuple[str, ...]] = {
    "targets": ("labels", "losses", "rows", "inputs", "probabilities"),
    "examples": ("labels", "inputs"),
}
_LDS = mapping({"mean": number(nan=True), "interval95": number(nan=True)})
_CURVATURE = mapping(
    {
        "steps": list_of(whole()),
        "eigenvalues": list_of(number(nan=True)),
        "rates": list_of(number(nan=True)),
    }
)
_LEAVE_K_OUT = mapping({"counts": list_of(whole(1)), "changes": list_of(text)})
_HEADER = mapping(
    {
        "version": whole(1),
        "run": text,
        "state": text,
        "split": text,
        "scores": list_of(text),
        "self_scores": list_of(text),
        "seconds": map_of(text, number()),
        "class_names": maybe(list_of(text)),
        "retrained": list_of(mapping({"left_out": number(), "lds": map_of(text, _LDS)})),
        "leave_k_out": maybe(_LEAVE_K_OUT),
        "curvature": maybe(_CURVATURE),
        "warnings": list_of(text),
        "settings": map_of(text, anything),
        "provenance": map_of(text, anything),
    }
)


@checked
def save_findings(path: Path, findings: Findings, *, with_inputs: bool = True) -> None:
    """Write findings to one ``.npz`` file, whole or not at all.

    Args:
        path: of the file; its folder is made if missing.
        findings: all of them.
        with_inputs: keep the inputs of targets and of all examples too, without which a page that
            is made of the file later has no pictures.

    Raises:
        SettingError: the name of a file that does not end in ``.npz``.
        OSError: what the system refuses, with ``path`` as its file.
    """
    if Path(path).suffix != ".npz":
        raise SettingError("path", str(path), "the name of a file .npz is needed")
    tensors: dict[str, Tensor | None] = {"walk_norms": findings.walk_norms}
    for part, fields in _FIELDS.items():
        for name in fields if with_inputs else (name for name in fields if name != "inputs"):
            tensors[f"{part}.{name}"] = getattr(getattr(findings, part), name)
    for kind in ("scores", "self_scores"):
        tensors |= {f"{kind}.{i}": s for i, s in enumerate(getattr(findings, kind).values())}
    for i, subsets in enumerate(findings.retrained):
        tensors[f"retrained.{i}"] = subsets.outcomes
        for j, (method, values) in enumerate(subsets.predicted.items()):
            tensors[f"retrained.{i}.predicted.{j}"] = values
            tensors[f"retrained.{i}.correlations.{j}"] = subsets.lds[method].correlations
    tensors |= _of_leave_k_out(findings.leave_k_out)
    arrays = {name: _array(values) for name, values in tensors.items() if values is not None}
    save_pack(Path(path), Pack(arrays, json.dumps(_header(findings))))


@checked
def load_findings(path: Path) -> Findings:
    """Read what `save_findings` wrote.

    Raises:
        DataError: no such file, or one that is damaged, of another kind or of a later version.
    """
    path = Path(path)
    try:
        pack = load_pack(path)
        header = {"leave_k_out": None, **json.loads(pack.source)}
        _HEADER(header, "")
        version = header["version"]
        if version == _VERSION:
            return _findings(header, {n: torch.from_numpy(a) for n, a in pack.arrays.items()})
    except FileNotFoundError as error:
        raise DataError(f"{path}: there are no such findings") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        reason = " ".join(missing.split())[:200]
        raise DataError(f"{path}: these are no findings of an attribution ({reason})") from error
    raise DataError(f"{path}: version {version} is not known here, but {_VERSION} is")


def _header(findings: Findings) -> dict[str, Any]:
    curvature, left = findings.curvature, findings.leave_k_out
    retrained = [
        {
            "left_out": subsets.left_out,
            "lds": {
                name: {"mean": found.mean, "interval95": found.interval95}
                for name, found in subsets.lds.items()
            },
        }
        for subsets in findings.retrained
    ]
    return {
        "version": _VERSION,
        "run": findings.run,
        "state": findings.state,
        "split": findings.split,
        "scores": list(findings.scores),
        "self_scores": list(findings.self_scores),
        "seconds": findings.seconds,
        "class_names": None if findings.class_names is None else list(findings.class_names),
        "retrained": retrained,
        "leave_k_out": left and {"counts": [*left.counts], "changes": [*left.changes]},
        "curvature": curvature and {name: list(values) for name, values in vars(curvature).items()},
        "warnings": list(findings.warnings),
        "settings": plain(findings.settings),
        "provenance": plain(findings.provenance),
    }


def _findings(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Findings:
    def part(name: str) -> dict[str, Any]:
        return {field: tensors.get(f"{name}.{field}") for field in _FIELDS[name]}

    def of_methods(kind: str) -> dict[str, Tensor]:
        return {name: tensors[f"{kind}.{i}"] for i, name in enumerate(header[kind])}

    retrained = [_subsets(kept, i, tensors) for i, kept in enumerate(header["retrained"])]
    plainly = ("run", "state", "split", "seconds", "class_names", "warnings")
    return Findings(
        **{name: header[name] for name in (*plainly, "settings", "provenance")},
        scores=of_methods("scores"),
        self_scores=of_methods("self_scores"),
        targets=TargetSamples(**part("targets")),
        examples=TrainingExamples(**part("examples")),
        retrained=retrained,
        leave_k_out=_leave_k_out(header["leave_k_out"], tensors),
        curvature=header["curvature"] and RunCurvature(**header["curvature"]),
        walk_norms=tensors.get("walk_norms"),
    )


def _subsets(kept: Mapping[str, Any], i: int, tensors: Mapping[str, Tensor]) -> SubsetOutcomes:
    predicted, lds = {}, {}
    for j, (method, found) in enumerate(kept["lds"].items()):
        predicted[method] = tensors[f"retrained.{i}.predicted.{j}"]
        correlations = tensors[f"retrained.{i}.correlations.{j}"]
        lds[method] = DatamodelingScore(correlations, found["mean"], found["interval95"])
    return SubsetOutcomes(kept["left_out"], tensors[f"retrained.{i}"], predicted, lds)


def _of_leave_k_out(found: LeaveKOut | None) -> dict[str, Tensor | None]:
    """Its tensors by the number of the method."""
    tensors: dict[str, Tensor | None] = {}
    for i, name in enumerate(found.changes if found is not None else ()):
        assert found is not None
        tensors[f"leave_k_out.changes.{i}"] = found.changes[name]
        tensors[f"leave_k_out.predicted.{i}"] = found.predicted.get(name)
        tensors[f"leave_k_out.flipped.{i}"] = found.flips[name].flipped if found.flips else None
    return tensors


def _leave_k_out(kept: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> LeaveKOut | None:
    if kept is None:
        return None
    counts = kept["counts"]

    def of(kind: str) -> dict[str, Tensor]:
        names = enumerate(kept["changes"])
        found = {name: tensors.get(f"leave_k_out.{kind}.{i}") for i, name in names}
        return {name: values for name, values in found.items() if values is not None}

    flips = {name: brittleness_of(flipped, counts) for name, flipped in of("flipped").items()}
    return LeaveKOut(counts, of("changes"), of("predicted"), flips)


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    values = values.detach().cpu()
    return (values.float() if values.dtype is torch.bfloat16 else values).contiguous().numpy()
