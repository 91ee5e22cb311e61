"""ε of composed events by dp-accounting, loaded where an ε is asked for.

Axes: none; orders are those of Rényi divergences.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metalearn.errors import DataError
from metalearn.privacy.events import GaussianEvent

__all__ = [
    "LEAST_NOISE",
    "Events",
    "epsilon_at_order",
    "order_of_least_epsilon",
    "pld_epsilon",
    "rdp_epsilon",
    "renyi_divergence",
    "selected_epsilon",
]

Events = Mapping[GaussianEvent, int]
"""How often each event happens."""

LEAST_NOISE = 1e-3
"""Of σ; below it ε is above 10^5, whatever the sampling: as good as none."""
_INTERVAL = 1e-4  # of discretised privacy losses, dp-accounting's own
_WIDTH = 8.0  # privacy losses of one event that are discretised so finely; wider ones are coarser
_TOLERANCE = 1e-12  # of an ε that is found by bisection
_KEPT = 16  # distributions, of a few megabytes each


def rdp_epsilon(events: Events, delta: float) -> float:
    """The least ε over Rényi orders; infinity without noise.

    Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism",
    arXiv 1908.10530; Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy",
    NeurIPS 2020 (from Rényi divergences to ε).
    """
    happened = _happened(events)
    if not happened or _noiseless(happened):
        return math.inf if happened else 0.0
    return _least(happened, delta)[0]


def order_of_least_epsilon(events: Events, delta: float) -> float:
    """The Rényi order at which `rdp_epsilon` is least; there have to be events, all with noise."""
    return _least(_happened(events), delta)[1]


@lru_cache(maxsize=1024)
def renyi_divergence(event: GaussianEvent, order: float) -> float:
    """Of one event at one order, the larger of both directions; infinity without noise."""
    if _noiseless([(event, 1)]):
        return math.inf
    accountant = _rdp_accountant(event, [order])
    with _quiet():
        accountant.compose(_sampled(event))
    return float(accountant.rdp[0])


def epsilon_at_order(divergence: float, order: float, delta: float) -> float:
    """ε of a Rényi divergence at one order."""
    with _quiet():
        found = _dp_accounting().rdp.compute_epsilon([order], [divergence], delta)
    return float(found[0])


def pld_epsilon(events: Events, delta: float) -> float:
    """ε of the discretised privacy loss distribution, from above; infinity without noise.

    Gaussian mechanisms over all data alone compose to one, whose ε is known exactly. Of samples an
    event's distribution is made once and then composed with itself by one Fourier transform,
    which takes a few tenths of a second whatever the number of steps.

    Koskela, Jälkö and Honkela, "Computing Tight Differential Privacy Guarantees Using FFT",
    AISTATS 2020; Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy
    Loss Distributions", PoPETs 2022; Balle and Wang, "Improving the Gaussian Mechanism for
    Differential Privacy: Analytical Calibration and Optimal Denoising", ICML 2018 (all data).
    """
    happened = _happened(events)
    if not happened or _noiseless(happened):
        return math.inf if happened else 0.0
    if all(event.rate == 1 for event, _ in happened):
        precision = sum(count / event.noise_multiplier**2 for event, count in happened)
        with _quiet():
            exact = _dp_accounting().get_epsilon_gaussian(precision**-0.5, delta, tol=_TOLERANCE)
        return float(exact) + _TOLERANCE
    interval = _interval(happened)
    with _quiet():
        composed = None
        for event, count in happened:
            part = _losses(event, count, interval)
            composed = part if composed is None else composed.compose(part)
        assert composed is not None
        return float(composed.get_epsilon_for_delta(delta))


def selected_epsilon(events: Events, delta: float, mean: float, shape: float) -> float:
    """ε of the best of K runs, K drawn by chance, by Rényi divergences; infinity without noise.

    Papernot and Steinke, "Hyperparameter Tuning with Rényi Differential Privacy", ICLR 2022.

    Args:
        events: of one run.
        delta: δ.
        mean: of K.
        shape: of the negative binomial distribution of K above 0: 1 is geometric; infinity is
            Poisson's, which may be 0.
    """
    happened = _happened(events)
    if not happened or _noiseless(happened):
        return math.inf if happened else 0.0
    library = _dp_accounting()
    drawn = [event for event, _ in happened if event.without_replacement]
    accountant = _rdp_accountant((drawn or [happened[0][0]])[0])
    made = library.dp_event
    run = made.ComposedDpEvent(
        [made.SelfComposedDpEvent(_sampled(event), count) for event, count in happened]
    )
    with _quiet():
        accountant.compose(made.RepeatAndSelectDpEvent(run, mean, shape))
        return float(accountant.get_epsilon(delta))


def _least(happened: list[tuple[GaussianEvent, int]], delta: float) -> tuple[float, float]:
    """The least ε over orders, and the order."""
    library = _dp_accounting()
    total = sum(count * _divergences(event) for event, count in happened)
    with _quiet():
        orders = library.rdp.RdpAccountant().orders
        epsilon, order = library.rdp.compute_epsilon(orders, total, delta)
    return float(epsilon), float(order)


def _happened(events: Events) -> list[tuple[GaussianEvent, int]]:
    """In an order that does not depend on that of the steps, so that sums round alike."""
    some = [(event, count) for event, count in events.items() if count]
    return sorted(some, key=lambda pair: repr(pair[0]))


def _noiseless(happened: list[tuple[GaussianEvent, int]]) -> bool:
    return any(event.noise_multiplier < LEAST_NOISE for event, _ in happened)


@lru_cache(maxsize=1024)
def _divergences(event: GaussianEvent) -> NDArray[np.float64]:
    """Rényi divergences of one event at all orders."""
    accountant = _rdp_accountant(event)
    with _quiet():
        accountant.compose(_sampled(event))
    found: NDArray[np.float64] = accountant.rdp
    return found


def _sampled(event: GaussianEvent) -> Any:
    """The event as dp-accounting has it."""
    library = _dp_accounting()
    gaussian = library.GaussianDpEvent(event.noise_multiplier)
    if event.rate == 1:
        return gaussian
    if event.without_replacement:
        size, examples = event.rate.as_integer_ratio()  # dp-accounting takes their ratio again
        return library.SampledWithoutReplacementDpEvent(examples, size, gaussian)
    return library.PoissonSampledDpEvent(event.rate, gaussian)


def _rdp_accountant(event: GaussianEvent, orders: list[float] | None = None) -> Any:
    """An accountant of Rényi divergences for the neighbours of an event, at its own orders."""
    library = _dp_accounting()
    relation = library.NeighboringRelation.ADD_OR_REMOVE_ONE
    if event.without_replacement and event.rate < 1:
        relation = library.NeighboringRelation.REPLACE_ONE
    return library.rdp.RdpAccountant(orders, neighboring_relation=relation)


def _interval(happened: list[tuple[GaussianEvent, int]]) -> float:
    """How finely losses are discretised: one grid for all, wider where they spread further."""
    width = max(_spread(event, count) for event, count in happened)
    return float(_INTERVAL * 2 ** max(0, math.ceil(math.log2(width / _WIDTH))))


def _spread(event: GaussianEvent, count: int) -> float:
    """About the largest loss that is discretised, ten standard deviations from the mean."""
    std = event.noise_multiplier / math.sqrt(count if event.rate == 1 else 1)
    return 0.5 / std**2 + 10 / std


def _losses(event: GaussianEvent, count: int, interval: float) -> Any:
    """The distribution of the loss of an event that happens ``count`` times."""
    if event.rate == 1:  # so many Gaussian mechanisms are one of less noise
        return _one_loss(event.noise_multiplier / math.sqrt(count), 1.0, interval)
    return _one_loss(event.noise_multiplier, event.rate, interval).self_compose(count)


@lru_cache(maxsize=_KEPT)
def _one_loss(std: float, rate: float, interval: float) -> Any:
    make = _dp_accounting().pld.privacy_loss_distribution.from_gaussian_mechanism
    return make(std, sampling_prob=rate, value_discretization_interval=interval)


def _dp_accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        needed = "pip install 'torch-metalearn[privacy]'"
        raise DataError(f"dp-accounting is needed for an ε: {needed}") from error
    _keep_stream_open()
    return dp_accounting


def _keep_stream_open() -> None:
    """Let absl, by which dp-accounting logs, hold the system's standard error and no other stream.

    Where another stood in its place when absl was imported, as in a notebook, absl closes that one
    as soon as logging is configured anew, as Hydra does.
    """
    handler = import_module("absl.logging").get_absl_handler().python_handler
    if sys.__stderr__ is not None and handler.stream is not sys.__stderr__:
        handler.setStream(sys.__stderr__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's warnings of orders that it leaves out, which ε does not need.

    What other threads log is let through, and so are their floating-point warnings.
    """
    thread, logger = threading.get_ident(), logging.getLogger("absl")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(others)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.removeFilter(others)
