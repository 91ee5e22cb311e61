"""What a checkpoint keeps of a plan, so that a resumed run goes on in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from metalearn.core import Engine, Method, Plan
from metalearn.core.tree import leaves
from metalearn.schema import Kind, choice, maybe, text, together, whole
from metalearn.trainers.loop.plans import keeps
from metalearn.types import Params

__all__ = ["kept_plan", "plan_kind", "plan_state"]

_PARTS = ("engine", "method", "chunk_size")


def plan_state(plan: Plan | None, asked: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """A plan in plain values, with what memory it was given; nothing of none."""
    if plan is None:
        return {}
    memory = {"memory": asked["memory"]} if "memory" in asked else {}
    return {**{name: getattr(plan, name) for name in _PARTS}, **memory, "device": _device(params)}


def plan_kind() -> Kind:
    """What `plan_state` has to be in a checkpoint."""
    plan = {
        "engine": choice(*get_args(Engine)),
        "method": choice(*get_args(Method)),
        "chunk_size": maybe(whole(1)),
        "device": text,
    }
    return together(plan)


def kept_plan(state: Mapping[str, Any], asked: Mapping[str, Any], params: Params) -> Plan | None:
    """The plan of a checkpoint; None where it was for another kind of device or other settings."""
    plan: dict[str, Any] = {name: state.get(name) for name in _PARTS}
    given = {**plan, "memory": state.get("memory", asked.get("memory"))}
    if state.get("device") != _device(params) or not keeps(given, **asked):
        return None
    return Plan(**plan, notes=("as before the interruption",))


def _device(params: Params) -> str:
    return str(leaves(params)[0].device.type)
