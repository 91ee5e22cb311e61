"""Audits: whether what is claimed to be private is, by trying to tell what took part."""

from metalearn.auditing.lower_bounds import EpsilonBound, epsilon_lower_bound, gaussian_epsilon
from metalearn.auditing.private_step import StepAudit, audit_private_step
from metalearn.auditing.private_training import TrainingAudit, audit_private_training

__all__ = [
    "EpsilonBound",
    "StepAudit",
    "TrainingAudit",
    "audit_private_step",
    "audit_private_training",
    "epsilon_lower_bound",
    "gaussian_epsilon",
]
