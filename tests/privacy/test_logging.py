"""What dp-accounting logs by leaves the streams of others alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOTEBOOK = """
import io, logging.config, sys
sys.stderr = stream = io.StringIO()  # as a notebook's
from metalearn.privacy import SampledGaussian, privacy_spent
privacy_spent([(SampledGaussian("poisson", 100, 10, 1.0), 5)], 1e-5)
logging.config.dictConfig({"version": 1})  # closes the handlers that there are, as Hydra does
stream.write("open")
"""


def test_the_standard_error_stays_open_where_logging_is_configured_anew() -> None:
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    subprocess.run([sys.executable, "-c", NOTEBOOK], check=True)
