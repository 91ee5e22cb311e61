"""What attribution and hypergradients are good for, each use held against what else would be done.

A study is run for several seeds, of data, networks and orders; settings are chosen by validation.
"""

from metalearn.studies.registry import STUDIES, Study, chosen_studies
from metalearn.studies.results import StudyResult, read_results, study_table
from metalearn.studies.runner import StudyRunner

__all__ = [
    "STUDIES",
    "Study",
    "StudyResult",
    "StudyRunner",
    "chosen_studies",
    "read_results",
    "study_table",
]
