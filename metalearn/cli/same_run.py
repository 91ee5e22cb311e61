"""Whether ranks are about to share the same run.

Axes: R ranks.
"""

from __future__ import annotations

import hashlib
import json

from omegaconf import DictConfig, OmegaConf

from metalearn.cli.processes import check_alike
from metalearn.cli.run_config import used_part
from metalearn.ranks import Ranks
from metalearn.tracking import provenance
from metalearn.trainers import Trainer

__all__ = ["check_same_run"]


def check_same_run(ranks: Ranks, config: DictConfig, trainer: Trainer) -> None:
    """Refuse ranks with another code or version of a package, other settings or other data.

    Raises:
        SettingError: names what differs, and the rank.
    """
    if ranks.count == 1:
        return
    data = str(trainer.data_checksum)
    ranks.gather()  # one machine may have prepared the data, where another had them already
    known = provenance()
    code = json.dumps([known["git"], known["versions"]], sort_keys=True)
    same = {
        "code": _digest(code),
        "configuration": _digest(OmegaConf.to_yaml(used_part(config), resolve=True)),
        "data": data,
    }
    check_alike(ranks, same)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
