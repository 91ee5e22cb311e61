"""Which training examples made a model what it is: scores of examples, and whether they are right.

A score of example i for target r is positive where the example helps: leaving it out raises the
target's loss.
"""

# Through the whole run
from metalearn.attribution.training_run import TrainingRun, training_run
from metalearn.attribution.exact import ExactScores, RunCurvature, exact_scores, run_curvature

# Scores of examples for targets
from metalearn.attribution.curvature_choice import Curvature
from metalearn.attribution.influence import Influence, conjugate_gradient_influence
from metalearn.attribution.kronecker import kronecker_influence, kronecker_self_influence
from metalearn.attribution.similarity import gradient_similarity, representation_similarity
from metalearn.attribution.tracin import tracin_scores, tracin_self_influence
from metalearn.attribution.trak import trak_scores

# Of meta-learners: support examples and tasks
from metalearn.attribution.support_left_out import leave_one_support_out
from metalearn.attribution.support_examples import learner_support_scores, support_example_scores
from metalearn.attribution.training_tasks import task_scores
from metalearn.attribution.scored_learner import LearnerScores, learner_scores
from metalearn.attribution.trained_tasks import TrainedTasks
from metalearn.attribution.learner_findings import LearnerFindings
from metalearn.attribution.learner_figures import track_learner_findings
from metalearn.attribution.learner_findings_file import save_learner_scores
from metalearn.attribution.learner_page import write_learner_page

# A stored index of gradients
from metalearn.attribution.gradient_index import (
    GradientIndex,
    build_gradient_index,
    load_gradient_index,
)

# Scores of examples by themselves
from metalearn.attribution.pruning import el2n_scores, grand_scores

# Label errors by what other networks predict
from metalearn.attribution.confident_learning import (
    ConfidentJoint,
    PruningRule,
    confident_joint,
    label_issues,
)
from metalearn.attribution.out_of_sample import out_of_sample_probabilities

# Retraining, the test of every score
from metalearn.attribution.datamodels import (
    Brittleness,
    DatamodelingScore,
    LeaveOutChanges,
    brittleness,
    leave_out_changes,
    leave_top_out,
    linear_datamodeling_score,
    rank_correlations,
)
from metalearn.attribution.leaving_out import CHANCE, LeaveKOut, leave_k_out
from metalearn.attribution.retraining import Retrained, retrain_subsets
from metalearn.trainers.supervised.member_weights import random_subsets

# All methods by name, of a network and the run that made it
from metalearn.attribution.attributing import Attributed, attribute
from metalearn.attribution.kept_on_disk import StatesOnDisk, WalkCheckpoint
from metalearn.attribution.retraining_settings import retraining_settings
from metalearn.attribution.scored_network import (
    METHODS,
    SELF_METHODS,
    ScoredNetwork,
    ScoreSettings,
)

# What was found, and what people look at
from metalearn.attribution.findings import Findings
from metalearn.attribution.findings_figures import track_findings
from metalearn.attribution.findings_file import load_findings, save_findings
from metalearn.attribution.found_samples import TargetSamples, TrainingExamples
from metalearn.attribution.report_page import write_page
from metalearn.attribution.subset_outcomes import SubsetOutcomes, subset_outcomes

__all__ = [
    # Through the whole run
    "ExactScores",
    "RunCurvature",
    "TrainingRun",
    "exact_scores",
    "run_curvature",
    "training_run",
    # Scores of examples for targets
    "Curvature",
    "Influence",
    "conjugate_gradient_influence",
    "gradient_similarity",
    "kronecker_influence",
    "kronecker_self_influence",
    "representation_similarity",
    "tracin_scores",
    "tracin_self_influence",
    "trak_scores",
    # Of meta-learners: support examples and tasks
    "LearnerFindings",
    "LearnerScores",
    "TrainedTasks",
    "learner_scores",
    "learner_support_scores",
    "leave_one_support_out",
    "save_learner_scores",
    "support_example_scores",
    "task_scores",
    "track_learner_findings",
    "write_learner_page",
    # A stored index of gradients
    "GradientIndex",
    "build_gradient_index",
    "load_gradient_index",
    # Scores of examples by themselves
    "el2n_scores",
    "grand_scores",
    # Label errors by what other networks predict
    "ConfidentJoint",
    "PruningRule",
    "confident_joint",
    "label_issues",
    "out_of_sample_probabilities",
    # Retraining, the test of every score
    "CHANCE",
    "Brittleness",
    "DatamodelingScore",
    "LeaveKOut",
    "LeaveOutChanges",
    "Retrained",
    "brittleness",
    "leave_k_out",
    "leave_out_changes",
    "leave_top_out",
    "linear_datamodeling_score",
    "random_subsets",
    "rank_correlations",
    "retrain_subsets",
    # All methods by name, of a network and the run that made it
    "METHODS",
    "SELF_METHODS",
    "Attributed",
    "ScoreSettings",
    "ScoredNetwork",
    "StatesOnDisk",
    "WalkCheckpoint",
    "attribute",
    "retraining_settings",
    # What was found, and what people look at
    "Findings",
    "SubsetOutcomes",
    "TargetSamples",
    "TrainingExamples",
    "load_findings",
    "save_findings",
    "subset_outcomes",
    "track_findings",
    "write_page",
]
