"""Which states of a run are kept for the way back, where not all of them can be.

Axes: K steps, S states that may be kept at once.
"""

from __future__ import annotations

from math import comb

__all__ = ["forward_steps", "places_to_keep"]


def places_to_keep(steps: int, free: int) -> list[int]:
    """After how many of ``steps`` steps a state is kept, beside that before the first.

    The way back over n steps from a kept state needs the states before each of them. Those that are
    not kept are computed again, from the last that is; the places are such that no step is taken
    again more often than it has to be: with s = ``free`` + 1 states and t the least number for
    which C(s + t, s) ≥ n, at most t times.

    Args:
        steps: n.
        free: how many further states may be kept.

    Source: Griewank and Walther, "Algorithm 799: Revolve", ACM Transactions on Mathematical
    Software 26, 2000.
    """
    found, base = [], 0
    while free > 0 and steps > 1:
        offset = _first_place(steps, free + 1)
        base += offset
        found.append(base)
        steps, free = steps - offset, free - 1
    return found


def forward_steps(steps: int, states: int, back: int | None = None) -> int:
    """How many steps are taken forward, the first K among them, for the way back.

    Args:
        steps: K.
        states: S, at least 1.
        back: over how many steps the way back goes; None is all K.
    """
    kept, total, first = [0, *places_to_keep(steps, states - 1)], steps, steps
    end = 0 if back is None else steps - back
    while first > end:  # the way back has come to the state before this step
        last = kept[-1]
        if last < first - 1:
            total += first - 1 - last
            kept += [last + place for place in places_to_keep(first - last, states - len(kept))]
        if kept[-1] == first - 1:
            kept.pop()
        first -= 1
    return total


def _first_place(steps: int, states: int) -> int:
    sweeps = 1
    while comb(states + sweeps, states) < steps:
        sweeps += 1
    return max(1, steps - comb(states - 1 + sweeps, states - 1))
